"""`dnabert2 score-variants` that is killed and started again, and in two processes: the same file."""

import os
import random
import socket
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from variant_files import other, record, score_words, write_vcf

from dnabert2.cli import main
from dnabert2.inference import variants
from dnabert2.inference.variant_scores import VariantScorer

CHR1 = "".join(random.Random(7).choices("ACGT", k=200)) + "N"


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text(f">chr1\n{CHR1}\n")
    return str(path)


def snv(pos: int, by: int) -> str:
    return record(pos, CHR1[pos - 1], other(CHR1[pos - 1], by))


MANY = [snv(pos, by) for pos in range(30, 50) for by in (1, 2)]
KILLED = """
import os, signal, sys
from dnabert2.cli import main
from dnabert2.inference import variant_scores, variants

variants.CHUNK, calls, score = 8, [], variant_scores.VariantScorer.score

def counted(self, some):
    calls.append(len(some))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(self, some)

variant_scores.VariantScorer.score = counted
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["scores.parquet", "scores.vcf.gz"])
def test_killed_and_started_again(genome, tmp_path, monkeypatch, name):
    """The same file as without, and no chunk that was whole is scored again."""
    path, output = write_vcf(tmp_path / "calls.vcf", MANY), tmp_path / name
    more = ["--scores", "llr", "--forward_only"]
    given = score_words(path, genome, output, *more)
    killed = subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True)
    assert killed.returncode == -9 and not output.exists()
    parts = sorted((tmp_path / f"{name}.partial").glob("*.parquet"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:-20])  # and one of them damaged

    monkeypatch.setattr(variants, "CHUNK", 8)
    scored, score = [], VariantScorer.score

    def counted(self, some):
        scored.append(len(some))
        return score(self, some)

    monkeypatch.setattr(VariantScorer, "score", counted)
    assert main(given) == 0
    assert scored == [8, 8, 8]
    whole = tmp_path / f"whole_{name}"
    assert main(score_words(path, genome, whole, *more)) == 0 and scored == [8] * 8
    if name.endswith("parquet"):
        assert pq.read_table(output).equals(pq.read_table(whole)) and pq.read_table(whole).num_rows == len(MANY)
    else:
        assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_chunks_of_another_genome_are_not_gone_on_with(genome, tmp_path):
    """The alleles fit a genome in which a base near them is another one, the scores do not."""
    path, fasta = write_vcf(tmp_path / "calls.vcf", MANY), tmp_path / "genome.fa"
    fasta.write_text(f">chr1\n{CHR1}\n")
    given = [score_words(path, str(fasta), tmp_path / name, "--scores", "llr", "--forward_only") for name in "ab"]
    assert subprocess.run([sys.executable, "-c", KILLED, *given[0]], capture_output=True).returncode == -9
    fasta.write_text(f">chr1\n{CHR1[:24]}{other(CHR1[24])}{CHR1[25:]}\n")
    for index in tmp_path.glob("*.fai"):
        index.unlink()
    assert main(given[0]) == main(given[1]) == 0
    gone_on, new = (pq.read_table(words[words.index("--output") + 1]) for words in given)
    assert gone_on.equals(new)


def test_two_processes(genome, tmp_path, monkeypatch):
    """Through torchrun, in two chunks: the same file as one process writes."""
    records = [snv(pos, by) for pos in range(2, 160) for by in (1, 2)]
    assert len(records) > variants.CHUNK
    path = write_vcf(tmp_path / "calls.vcf", [*records, record(len(CHR1), "N", "A")])
    more = ["--scores", "llr", "--forward_only"]
    assert main(score_words(path, genome, tmp_path / "one.parquet", *more)) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    given = score_words(path, genome, tmp_path / "two.parquet", *more)[1:]
    done = subprocess.run(
        [*start, "-m", "dnabert2.inference.variants", *given],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("1 alleles have no score") == 1
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one.equals(two) and one.num_rows == len(records) + 1
