"""Training a tokenizer: layout, determinism, balance, and bad input; and the one we ship."""

import gzip
import json
import random

import pytest

from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.tokenizer.files import OURS, load_tokenizer, wrap_tokenizer, write_tokenizer
from dnabert2.tokenizer.sampling import fair_shares, windows

SPECIALS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4}


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genomes")
    draw = random.Random(1)
    for name, motif, bases in (("big", "TATAAAGG", 60_000), ("small", "CCGGACGT", 6_000)):
        text = "".join(motif if draw.random() < 0.3 else "".join(draw.choices("ACGT", k=8)) for _ in range(bases // 8))
        with gzip.open(folder / f"{name}.fa.gz", "wt") as handle:
            handle.write(f">{name}_1\n{text[: bases // 2].lower()}\nNNNNN\n>{name}_2\n{text[bases // 2 :]}\n")
    (folder / "groups.tsv").write_text("file\tgroup\nbig.fa.gz\tplant (plastid)\nx/small.fa.gz\tvirus\n")
    return folder


@pytest.fixture(scope="module")
def trained(genomes, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "tokenizer"
    arguments = [
        "--input",
        str(genomes),
        "--groups",
        str(genomes / "groups.tsv"),
        "--vocab_size",
        "64",
        "--window",
        "100",
    ]
    assert main(["train-tokenizer", *arguments, "--max_bases", "20e3", "--output", str(output)]) == 0
    return output, arguments


def test_special_ids_alphabet_and_templates(trained):
    tokenizer = load_tokenizer(trained[0])
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS} == SPECIALS
    assert tokenizer.convert_ids_to_tokens(list(range(5, 9))) == list("ACGT")
    assert len(tokenizer) == 64
    encoded = tokenizer("ACGT", "TTTT")
    assert encoded["input_ids"][0] == 1 and encoded["input_ids"].count(2) == 2
    assert encoded["token_type_ids"] == sorted(encoded["token_type_ids"]) and set(encoded["token_type_ids"]) == {0, 1}


def test_groups_are_balanced_and_recorded(trained):
    manifest = json.loads((trained[0] / "training.json").read_text())
    groups = manifest["groups"]
    assert set(groups) == {"plant", "virus"}
    # The small group is used whole (less the Ns and a short last window), the large one fills the rest.
    assert groups["virus"]["used"] > 0.9 * groups["virus"]["bases"]
    assert 12_000 < groups["plant"]["used"] < 16_000
    assert manifest["bases"] == sum(group["used"] for group in groups.values())


def test_training_twice_gives_the_same_file(trained, tmp_path):
    output, arguments = trained
    assert main(["train-tokenizer", *arguments, "--max_bases", "20e3", "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (output / "tokenizer.json").read_bytes()


def test_fair_shares():
    assert fair_shares({"a": 10, "b": 100, "c": 100}, 110) == {"a": 10, "b": 50, "c": 50}
    assert fair_shares({"a": 10, "b": 20}, 30) == {"a": 10, "b": 20}


def test_windows_break_at_n_and_leave_scraps_out():
    text = "A" * 250 + "N" + "C" * 99 + "NN" + "G" * 120
    assert list(windows(text, 150)) == ["A" * 150, "A" * 100, "G" * 120]


def test_bad_input_is_one_sentence_and_exit_code_2(genomes, tmp_path, capsys):
    protein, empty = tmp_path / "protein.fa", tmp_path / "empty.fa"
    protein.write_text(">sp|P1\nMKVLEEFIQPLLKWW\n")
    empty.write_text("")
    only_n = tmp_path / "n.fa"
    only_n.write_text(">n\nNNNNNNNN\n")
    for source, message in (
        (protein, "this looks like protein"),
        (empty, "no FASTA record"),
        (only_n, "no stretch of"),
        (tmp_path / "absent.fa", "no such file"),
    ):
        assert main(["train-tokenizer", "--input", str(source), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and str(source) in error and "Traceback" not in error
        assert error.count("error:") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.tmp").exists()
    arguments = ["train-tokenizer", "--input", str(genomes), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--vocab_size", "30000"]) == 2
    assert "train on more sequence" in capsys.readouterr().err
    assert main([*arguments, "--groups", str(genomes / "groups.tsv"), "--group_column", "kingdom"]) == 2
    assert "no column 'kingdom'" in capsys.readouterr().err


def test_ours_has_the_published_layout():
    tokenizer = wrap_tokenizer(OURS / "tokenizer.json")
    assert len(tokenizer) == 4096
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS} == SPECIALS
    manifest = json.loads((OURS / "training.json").read_text())
    assert manifest["bases"] >= 100e6
    text = "".join(random.Random(0).choices("ACGT", k=2000))
    ids = tokenizer(text)["input_ids"]
    assert 0 not in ids and "".join(tokenizer.convert_ids_to_tokens(ids[1:-1])) == text


def test_published_tokenizer_keeps_its_ids(shared):
    """Literal ids of the published file, through our loading, policy and files."""
    from tokenizers import Tokenizer

    source = shared / "reference" / "dnabert2_tokenizer.json"
    text = "".join(random.Random(7).choices("ACGT", k=3000))
    expected = Tokenizer.from_file(str(source)).encode(text).ids
    assert load_tokenizer(source)(text)["input_ids"] == expected
    assert load_tokenizer(source)("ACGTAGCATCGGATCTATCTATCGACACTTGGTTATCGATCTACGAGCATCTCGTTAGC")["input_ids"] == [
        1, 5, 194, 32, 757, 1239, 2092, 294, 24, 359, 88, 93, 32, 75, 77, 19, 2
    ]  # fmt: skip


def test_files_load_with_auto_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(OURS / "tokenizer.json", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert set(tokenizer("ACGT")) == {"input_ids", "token_type_ids", "attention_mask"}
    assert tokenizer.pad_token_id == 3 and tokenizer.padding_side == "right"


def test_a_folder_without_tokenizer_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
