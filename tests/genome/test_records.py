"""Records of every kind of input say the same, and what cannot be used is named with its file, its place and why."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnabert2.errors import UserError
from dnabert2.genome.records import BadRecord, Columns, Record, SeenIds, read_records

SEQUENCES = {"a": "ACGTacgtNN", "b": "", "c/1": "ugcaRYK", "d": "TTG"}
GENOME = ">chr1 one\nAACCGGTTNNacgt\n>chr2\nTTGCA\n"


def write(path: Path, content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return str(path)


def fasta(sequences: dict[str, str]) -> str:
    return "".join(f">{name} and more\n{s[:6]}\n{s[6:]}\n" for name, s in sequences.items())


def fastq(sequences: dict[str, str]) -> str:
    return "".join(f"@{name} and more\n{s}\n+\n{'I' * len(s)}\n" for name, s in sequences.items())


def table(sequences: dict[str, str], comma: str, with_ids: bool) -> str:
    header = comma.join(["sequence", "label", *(["id"] if with_ids else [])])
    rows = [comma.join([s, "1", *([name] if with_ids else [])]) for name, s in sequences.items()]
    return "\n".join([header, *rows, ""])


def json_lines(sequences: dict[str, str], with_ids: bool) -> str:
    rows = ({"sequence": s} | ({"id": name} if with_ids else {}) for name, s in sequences.items())
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def of(*inputs, **options) -> list[Record | BadRecord]:
    return list(read_records([str(x) for x in inputs], **options))


def said(records: list) -> list[str]:
    return [record.describe() for record in records if isinstance(record, BadRecord)]


@pytest.mark.parametrize("name", ["a.fa", "A.FASTA", "a.fna.gz", "a.ffn", "a.fq", "a.FASTQ.GZ"])
def test_fasta_and_fastq(tmp_path, name):
    is_fastq = "q" in name.lower()
    # A read without bases is no FASTQ.
    sequences = {name: s for name, s in SEQUENCES.items() if s} if is_fastq else SEQUENCES
    path = write(tmp_path / name, (fastq if is_fastq else fasta)(sequences))
    assert of(path) == [
        Record(name, s, f"{path}, record {i} ({name})") for i, (name, s) in enumerate(sequences.items(), 1)
    ]


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize(
    "name", ["a.csv", "A.CSV", "a.tsv", "a.csv.gz", "a.TSV.GZ", "a.jsonl", "a.json.gz", "a.parquet"]
)
def test_tables(tmp_path, name, with_ids):
    path, form = tmp_path / name, Path(name.lower().removesuffix(".gz")).suffix
    if form == ".parquet":
        columns = {"sequence": list(SEQUENCES.values())} | ({"id": list(SEQUENCES)} if with_ids else {})
        pq.write_table(pa.table(columns), path)
    elif form == ".jsonl" or form == ".json":
        write(path, json_lines(SEQUENCES, with_ids))
    else:
        write(path, table(SEQUENCES, "," if form == ".csv" else "\t", with_ids))
    unit, first = {".parquet": ("row", 1), ".csv": ("line", 2), ".tsv": ("line", 2)}.get(form, ("line", 1))
    expected = [
        Record(name, s, f"{path}, {unit} {i} ({name})")
        if with_ids
        else Record(str(i - first), s, f"{path}, {unit} {i}")
        for i, (name, s) in enumerate(SEQUENCES.items(), first)
    ]
    assert of(path) == expected


def test_columns_of_other_names_and_pairs(tmp_path):
    path = write(tmp_path / "a.csv", "seq,name,sequence2\n AC ,x, GT\nTT,7,\n")
    found = of(path, columns=Columns("seq", id="name"))
    assert [(r.id, r.sequence, r.pair) for r in found] == [("x", "AC", "GT"), ("7", "TT", "")]
    assert [r.pair for r in of(path, columns=Columns("seq", None, "name"))] == [None, None]
    pq.write_table(pa.table({"sequence": ["AC", None], "id": pa.array([7, 8])}), tmp_path / "a.parquet")
    assert [(r.id, r.sequence, r.pair) for r in of(tmp_path / "a.parquet")] == [("7", "AC", None), ("8", "", None)]


def test_memory_of_a_table_is_that_of_a_part_of_it(tmp_path):
    rows, parts, sizes = 1_000, 40, []
    sequences = ["".join(random.choices("ACGT", k=1_000)) for _ in range(rows)]
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("sequence", pa.string())])) as writer:
        for _ in range(parts):
            writer.write_table(pa.table({"sequence": sequences}))
    before = pa.total_allocated_bytes()
    for i, record in enumerate(read_records([str(tmp_path / "a.parquet")])):
        assert record.sequence == sequences[i % rows]
        sizes.append(pa.total_allocated_bytes() - before)
    assert len(sizes) == rows * parts and max(sizes) < 6 * 1_000 * rows


def test_rows_of_several_tables_without_ids_are_numbered_through(tmp_path):
    first = write(tmp_path / "a.csv", "sequence\nAC\n\nGT\n")
    second = write(tmp_path / "b.jsonl", '{"sequence": "TT"}\n')
    assert [(r.id, r.sequence) for r in of(first, second)] == [("0", "AC"), ("1", "GT"), ("2", "TT")]
    assert [r.where for r in of(first)] == [f"{first}, line 2", f"{first}, line 4"]


def test_bed(tmp_path):
    genome = write(tmp_path / "g.fa", GENOME)
    lines = [
        "# a comment",
        "track name=x",
        "browser position chr1:1-9",
        "",
        "chr1\t0\t4\tfirst\t9\t+\tmore",
        "chr1\t1\t5\tsecond\t0\t-",
        "1\t8\t14\t.\t0\t-",
        "chr2 0 5",
        "chr1\t0\t14\t\t0\t.",
    ]
    expected = [
        ("first", "AACC"),
        ("second", "CGGT"),
        ("1:8-14(-)", "acgtNN"),
        ("chr2:0-5", "TTGCA"),
        ("chr1:0-14", "AACCGGTTNNacgt"),
    ]
    for name in ("a.bed", "A.BED", "a.bed.gz", "A.BED.GZ"):
        for end in ("\n", "\r\n"):
            path = write(tmp_path / name, end.join([*lines, ""]))
            found = of(path, fasta=genome)
            assert [(r.id, r.sequence) for r in found] == expected
            assert found[0].where == f"{path}, line 5 (first)" and found[3].where == f"{path}, line 8 (chr2:0-5)"


def test_bad_lines_of_bed_are_left_out_one_by_one(tmp_path):
    genome = write(tmp_path / "g.fa", GENOME)
    lines = ["chr1\t5\t5", "chr1\t-1\t5", "chr1\t9\t99\tfar\t0\t+", "chr3\t0\t5", "chr1\ta\t5", "chr1", "chr2\t0\t5"]
    path = write(tmp_path / "a.bed", "\n".join([*lines, "chr2\t0\t5"]))
    found = of(path, fasta=genome)
    assert [r.sequence for r in found if isinstance(r, Record)] == ["TTGCA"]
    assert said(found) == [
        f"{path}, line 1 (chr1:5-5): holds no base, it goes from 5 to 5; BED starts at 0 and ends later.",
        f"{path}, line 2 (chr1:-1-5): holds no base, it goes from -1 to 5; BED starts at 0 and ends later.",
        f"{path}, line 3 (far): bases 10 to 99 of chr1 are not all in {genome}, which holds chr1:1-14; give the "
        "genome that the coordinates refer to.",
        f"{path}, line 4 (chr3:0-5): {genome} has no sequence 'chr3' (it has chr1, chr2); give the genome it belongs "
        "to.",
        f"{path}, line 5: is no BED; write chromosome, start and end with tabs between them.",
        f"{path}, line 6: is no BED; write chromosome, start and end with tabs between them.",
        f"{path}, line 8 (chr2:0-5): there was a record 'chr2:0-5' already; rename one.",
    ]
    assert [r.id for r in found if isinstance(r, BadRecord)][2] == "far"


def test_bad_rows_of_tables_are_left_out_one_by_one(tmp_path):
    text = 'id,sequence\na,AC\nb\n,GT\nc,"A"C\nd,GG,1\na,TT\ne,TT\n'
    path = write(tmp_path / "a.csv", text)
    found = of(path)
    assert [(r.id, r.sequence) for r in found if isinstance(r, Record)] == [("a", "AC"), ("e", "TT")]
    assert said(found) == [
        f"{path}, line 3: 1 fields where the header has 2; mend the row.",
        f"{path}, line 4: the column id is empty; fill it in.",
        f"{path}, line 5: is no well-formed .csv text (',' expected after '\"'); mend the row.",
        f"{path}, line 6: 3 fields where the header has 2; mend the row.",
        f"{path}, line 7 (a): there was a record 'a' already; rename one.",
    ]
    path = write(tmp_path / "a.jsonl", '{"id": "a", "sequence": 5}\n[]\n\n{"id": "b", "sequence": "AC"}\n{"id"\n')
    found = of(path)
    assert [r.sequence for r in found if isinstance(r, Record)] == ["AC"]
    assert [line.split(";")[0] for line in said(found)] == [
        f"{path}, line 1 (a): the sequence is '5', which is no text.",
        f"{path}, line 2: is no JSON object",
        f"{path}, line 5: is no JSON object (Expecting ':' delimiter: line 2 column 1 (char 6))",
    ]
    pq.write_table(pa.table({"sequence": [b"AC"], "id": [1.5]}), tmp_path / "a.parquet")
    assert said(of(tmp_path / "a.parquet")) == [
        f"{tmp_path / 'a.parquet'}, row 1 (1.5): the sequence is \"b'AC'\", which is no text."
    ]


def test_a_record_without_name(tmp_path):
    path = write(tmp_path / "a.fa", ">\nAC\n>b\nGT\n")
    assert said(of(path)) == [f"{path}, record 1 (): it has no name; write one behind the '>'."]


def test_the_same_name_in_two_files(tmp_path):
    first = write(tmp_path / "a.fa", ">x\nAC\n>y\nAC\n")
    second = write(tmp_path / "b.csv", "id,sequence\nz,AC\ny,AC\n")
    assert said(of(first, second)) == [f"{second}, line 3 (y): there was a record 'y' already; rename one."]
    assert len(said(of(first, first))) == 2


def test_files_that_turn_out_damaged_after_good_records(tmp_path):
    genome = write(tmp_path / "g.fa", GENOME)
    many = range(20_000)
    contents = {
        "a.fa.gz": "".join(f">r{i}\nACGT{i:b}\n" for i in many),
        "a.csv.gz": "id,sequence\n" + "".join(f"r{i},ACGT\n" for i in many),
        "a.jsonl.gz": "".join(f'{{"id": {i}, "sequence": "AC"}}\n' for i in many),
        "a.bed.gz": "".join(f"chr1\t0\t4\tr{i}\n" for i in many),
    }
    for name, content in contents.items():
        path = Path(write(tmp_path / name, content))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4])
        *good, last = of(path, fasta=genome)
        assert 1_000 < len(good) < len(many) and all(isinstance(record, Record) for record in good)
        unit = {"a.fa.gz": "record", "a.bed.gz": "line"}.get(name, "row")
        assert last.describe().startswith(f"{path}, what follows {unit} {len(good)}: the file is damaged or cut short")
        assert last.describe().endswith("copy or download it again.")
        path.write_bytes(whole[:30])
        with pytest.raises(UserError, match=f"{name}: (the file )?is damaged or cut short"):
            of(path, fasta=genome)
    path = write(tmp_path / "a.fq", "@a\nACGT\n+\nIIII\n@b\nACGT\n+\nII\n")
    assert [len(said(of(path))), of(path)[0].id] == [1, "a"]
    path = write(tmp_path / "b.csv", b"id,sequence\n" + b"a,AC\n" * 3_000 + b"\xff,AC\n")
    assert "what follows row" in said(of(path))[-1] and "is not readable as text" in said(of(path))[-1]


def test_a_genome_that_is_cut_short_behind_its_index(tmp_path):
    genome = Path(write(tmp_path / "g.fa", ">chr1\n" + "ACGTTGCATT\n" * 2_000))
    path = write(tmp_path / "a.bed", "chr1\t0\t4\nchr1\t19990\t20000\nchr1\t4\t8\n")
    assert len(said(of(path, fasta=str(genome)))) == 0
    with open(genome, "r+b") as handle:
        handle.truncate(5_000)
    Path(f"{genome}.fai").touch()
    found = of(path, fasta=str(genome))
    assert [isinstance(record, Record) for record in found] == [True, False, True]
    assert f"line 2 (chr1:19990-20000): {genome} is damaged or cut short" in said(found)[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.fa", "", "no FASTA record in this file"),
        ("a.fa", "chr1\t0\t5\n", "no FASTA record in this file"),
        ("a.txt", ">a\nAC\n", "its name says no format that is known (.fa, .fasta, .fna, .ffn, .fq, .fastq, .csv, "),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "seq,id\nAC,1\n", "has no column sequence (its columns are seq, id); name the one that holds"),
        ("a.parquet", "PAR1", "is damaged or cut short"),
        ("a.jsonl", "rubbish\n", "line 1: is no JSON object"),
        ("a.bed", "chr1\t0\t5\n", "BED names places in a genome; give that with --fasta"),
    ],
)
def test_inputs_that_cannot_be_read_at_all(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as raised:
        of(path)
    assert message in str(raised.value) and str(raised.value).startswith(path)


def test_missing_inputs_are_said_before_anything_is_read(tmp_path):
    path = write(tmp_path / "a.fa", ">a\nAC\n")
    with pytest.raises(UserError, match=r"b\.fa: no such file or folder"):
        read_records([path, str(tmp_path / "b.fa")])
    with pytest.raises(UserError, match="no input; give files of sequences, or - for standard input"):
        read_records([])
    with pytest.raises(UserError, match="has no column name"):
        of(write(tmp_path / "a.csv", "sequence\nAC\n"), columns=Columns(id="name"))


def test_folders_and_other_names(tmp_path):
    (tmp_path / "below").mkdir()
    with pytest.raises(UserError, match="no FASTA file in this folder"):
        read_records([str(tmp_path)])
    for name in ("b.fa", "below/a.fq.gz", "c.csv"):
        content = {"b.fa": ">b\nAC\n", "c.csv": "sequence\nAC\n"}.get(name, "@a\nGT\n+\nII\n")
        write(tmp_path / name, content)
    assert [(r.id, r.sequence) for r in of(tmp_path)] == [("b", "AC"), ("a", "GT")]
    assert [r.id for r in of(write(tmp_path / "names.txt", ">x\nAC\n"), only="fasta")] == ["x"]
    assert [r.id for r in of(write(tmp_path / "d.csv", ">x\nAC\n"), only="fasta")] == ["x"]


READ_STDIN = """
from dnabert2.genome.records import read_records
for record in read_records(["-"]):
    print(repr(record))
"""


@pytest.mark.parametrize("form", [fasta, fastq])
@pytest.mark.parametrize("compress", [False, True])
def test_standard_input(form, compress):
    sequences = {"a": "ACGTacgt", "b": "NNA"}
    content = form(sequences).encode()
    run = subprocess.run(
        [sys.executable, "-c", READ_STDIN],
        input=gzip.compress(content) if compress else content,
        capture_output=True,
        check=True,
    )
    expected = [
        Record(name, s, f"standard input, record {i} ({name})") for i, (name, s) in enumerate(sequences.items(), 1)
    ]
    assert run.stdout.decode().splitlines() == [repr(record) for record in expected]


def test_standard_input_that_is_empty_or_cut_short():
    run = subprocess.run([sys.executable, "-c", READ_STDIN], input=b"", capture_output=True)
    assert run.returncode and b"standard input: no FASTA record in this file" in run.stderr
    run = subprocess.run([sys.executable, "-c", READ_STDIN], input=b"@a\nAC\n+\nII\n@b\nAC\n+\nI", capture_output=True)
    assert b"what follows record 1" in run.stdout and b"the file is damaged or cut short" in run.stdout


@pytest.mark.parametrize("recent", [1, 2, 7, 1_000])
def test_ids_are_remembered_past_those_that_were_recent(recent, monkeypatch):
    monkeypatch.setattr(SeenIds, "RECENT", recent)
    seen = SeenIds()
    names = [f"read{i}" for i in range(200)]
    assert all(seen.add(name) for name in names)
    assert len(seen._recent) < max(recent, 1) + 1 and len(seen._sorted) == 200 // recent * recent
    assert not any(seen.add(name) for name in names)
    assert seen.add("read200") and not seen.add("read200") and seen.add("é\ud800") and not seen.add("é\ud800")
