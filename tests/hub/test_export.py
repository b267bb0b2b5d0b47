"""The exported text and its rules, what the folder holds, and every way a checkpoint or an output is refused."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import dnabert2
from dnabert2 import (
    DNABert2ForMaskedLM,
    DNABert2ForSequenceClassification,
    DNABert2ForTokenClassification,
    DNABert2Model,
)
from dnabert2.bert_layers.checkpoints import save_code_beside
from dnabert2.errors import UserError
from dnabert2.hub import export as export_module
from dnabert2.hub.export import export, main, smoke_load
from dnabert2.modeling_dnabert2 import AUTO_MAP
from dnabert2.remote_code import make_self_contained, write_code

ROOT = Path(dnabert2.__file__).parent
DECODER, WORDS = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> dict[str, Path]:
    """The exported modules by name."""
    return {path.stem: path for path in write_code(tmp_path_factory.mktemp("code"))}


def test_every_source_file_is_exported_once(code):
    parts = {path.stem for path in (ROOT / "bert_layers").glob("*.py")} - {"__init__"}
    assert set(code) == parts | {"configuration_dnabert2", "modeling_dnabert2"}
    assert len(code) == len(parts) + 2


def test_relative_imports_are_flat(code):
    """As the Hub's loader reads them: with regular expressions, in comments and strings as well."""
    for path in code.values():
        assert set(get_relative_imports(path)) <= set(code), path.name
        text = path.read_text()
        for line in re.findall(r"^.*\b(?:from|import)\s+\.\S*.*$", text, flags=re.MULTILINE):
            assert re.match(r"\s*from \.[a-z]\w* import ", line), f"{path.name}: {line}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in code, f"{path.name}:{node.lineno}"


def test_third_party_imports_are_torch_and_transformers(code):
    for path in code.values():
        assert set(get_imports(path)) - set(sys.stdlib_module_names) <= {"torch", "transformers"}, path.name


def test_modeling_file_imports_every_sibling(code):
    """transformers 4 copies what the modeling file of a local folder imports itself, and no more."""
    assert set(get_relative_imports(code["modeling_dnabert2"])) == set(code) - {"modeling_dnabert2"}
    assert all("register_for_auto_class" not in path.read_text() for path in code.values())


def test_only_import_prefixes_change(code):
    """Line by line the same text, so that tracebacks and comments of the source tree stay true."""
    for name, path in code.items():
        source = next(p for p in (ROOT / f"{name}.py", ROOT / "bert_layers" / f"{name}.py") if p.is_file())
        ours, theirs = source.read_text().splitlines(), path.read_text().splitlines()
        assert len(ours) == len(theirs)
        for before, after in zip(ours, theirs, strict=True):
            assert before == after or re.sub(r"^(\s*)from \.(bert_layers)?\.", r"\1from .", before) == after


def test_auto_map_names_exported_classes(code):
    for reference in AUTO_MAP.values():
        module, class_name = reference.split(".")
        assert any(getattr(node, "name", None) == class_name for node in ast.parse(code[module].read_text()).body)


def test_folder_holds_all_that_a_repository_needs(exported, published):
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["DNABert2ForMaskedLM"] and config["model_type"] == "dnabert2"
    assert config["auto_map"] == AUTO_MAP and config["pad_token_id"] == 3
    assert not {"alibi_starting_size", "position_embedding_type", "_name_or_path"} & set(config)
    assert (exported / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    assert (exported / "LICENSE").read_text().split()[:2] == ["Apache", "License"]
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    assert "$" not in card and "AutoModelForMaskedLM.from_pretrained" in card and "These weights have none" in card
    assert 'SentenceTransformer("DNABERT-2-tiny", trust_remote_code=True)' in card
    others = {"README.md", "LICENSE", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    others |= {"modules.json", "sentence_bert_config.json", "1_Pooling", "1_Pooling/config.json"}
    found = {path.relative_to(exported).as_posix() for path in exported.rglob("*")}
    assert found == others | {path.name for path in exported.glob("*.py")}
    assert not [path.name for path in exported.parent.iterdir() if path != exported]


def reload_equal(model_class, folder, state: dict):
    """`folder`, loaded by our own class, holds exactly the tensors of `state`."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded = model.state_dict()
    assert set(loaded) == set(state)
    for key, value in state.items():
        assert torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype, key
    return model


def architecture_of(folder) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]


@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "model_class, published_name",
    [
        (DNABert2Model, "BertModel"),
        (DNABert2ForMaskedLM, "BertForMaskedLM"),
        (DNABert2ForSequenceClassification, "BertForSequenceClassification"),
        (DNABert2ForTokenClassification, "BertForTokenClassification"),
    ],
)
def test_each_head_is_kept(model_class, published_name, named, prefix, build, variant, tmp_path):
    """By the architecture's name or by the keys alone, with the published prefix and without."""
    state = build(model_class, "sdpa", num_labels=3).state_dict()
    bare = {key.removeprefix("bert."): value for key, value in state.items()}
    heads = ("cls.", "classifier.")
    weights = {key if key.startswith(heads) else f"{prefix}{key}": value for key, value in bare.items()}
    labels = {"0": "x", "1": "y", "2": "z"}
    source = variant(weights, architectures=[published_name] if named else None, id2label=labels)
    output = export(source, tmp_path / "out", check=False)
    assert architecture_of(output) == model_class.__name__
    model = reload_equal(model_class, output, state)
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    embeds = model_class in (DNABert2Model, DNABert2ForMaskedLM)
    assert (output / "modules.json").exists() == (output / "1_Pooling").exists() == embeds
    assert ("SentenceTransformer(" in (output / "README.md").read_text()) == embeds


def test_base_model_without_pooler_stays_without(build, variant, tmp_path):
    state = build(DNABert2ForMaskedLM, "sdpa").bert.state_dict()
    output = export(variant(state, architectures=["BertModel"]), tmp_path / "out", check=False)
    model, info = DNABert2Model.from_pretrained(output, output_loading_info=True)
    assert set(info["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_spare_pooler_and_old_buffers_are_passed_over(masked_lm, variant, tmp_path):
    spare = {"bert.pooler.dense.weight": torch.ones(24, 24), "bert.embeddings.position_ids": torch.arange(5)[None]}
    output = export(variant({**masked_lm.state_dict(), **spare}), tmp_path / "out", check=False)
    reload_equal(DNABert2ForMaskedLM, output, masked_lm.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_kept(dtype, masked_lm, variant, tmp_path):
    state = {key: value.to(dtype) for key, value in masked_lm.state_dict().items()}
    output = export(variant(state, torch_dtype="float32"), tmp_path / "out", check=False)
    model = DNABert2ForMaskedLM.from_pretrained(output, dtype="auto")
    assert model.dtype == dtype and torch.equal(model.state_dict()[WORDS], state[WORDS])


def test_several_dtypes_become_the_widest(masked_lm, variant, tmp_path):
    state = {key: value.half() if "Wqkv" in key else value for key, value in masked_lm.state_dict().items()}
    output = export(variant(state), tmp_path / "out", check=False)
    reload_equal(DNABert2ForMaskedLM, output, {key: value.float() for key, value in state.items()})


def test_safetensors_without_the_tied_decoder(masked_lm, variant, tmp_path):
    source = variant(without=("pytorch_model.bin",))
    save_file({key: x for key, x in masked_lm.state_dict().items() if key != DECODER}, source / "model.safetensors")
    reload_equal(DNABert2ForMaskedLM, export(source, tmp_path / "out", check=False), masked_lm.state_dict())


def test_a_decoder_trained_apart_stays_apart(masked_lm, variant, tmp_path):
    state = {**masked_lm.state_dict(), DECODER: masked_lm.state_dict()[DECODER] + 1}
    output = export(variant(state), tmp_path / "out", check=False)
    model = reload_equal(DNABert2ForMaskedLM, output, state)
    assert not model.config.tie_word_embeddings


def test_our_own_and_sharded_checkpoints(masked_lm, tokenizer_json, tmp_path):
    source = tmp_path / "source"
    masked_lm.save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    shutil.copyfile(tokenizer_json, source / "tokenizer.json")
    output = export(source, tmp_path / "out", check=False)
    reload_equal(DNABert2ForMaskedLM, output, masked_lm.state_dict())
    again = export(output, tmp_path / "again", check=False)
    assert (again / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    (next(iter(source.glob("model-*.safetensors")))).unlink()
    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "bad")]) == 2


REFUSALS = {
    "no folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json in it"),
    "no weights": (lambda folder: weights_of(folder).unlink(), "no weights in it"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json in it; copy the one"),
    "config cut": (lambda folder: cut(folder / "config.json"), "not a DNABERT-2 configuration"),
    "config no table": (lambda folder: (folder / "config.json").write_text("[1]"), "not a DNABERT-2 configuration"),
    "config of odd size": (lambda folder: configure(folder, hidden_size=25), "must be a multiple of"),
    "weights cut": (lambda folder: cut(weights_of(folder)), "damaged, cut short"),
    "weights empty": (lambda folder: weights_of(folder).write_bytes(b""), "damaged, cut short"),
    "weights no tensors": (lambda folder: torch.save({"a": {"b": 1}}, weights_of(folder)), "not a table"),
    "safetensors cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 40), "damaged, cut short"),
    "LFS pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run `git lfs pull`",
    ),
    "bad index": (
        lambda folder: (
            weights_of(folder).unlink(),
            (folder / "model.safetensors.index.json").write_text("{}"),
        ),
        "not an index of weight files",
    ),
    "another model": (
        lambda folder: torch.save({"encoder.layer.0.attention.self.query.weight": torch.ones(2)}, weights_of(folder)),
        "weights, the first is bert.embeddings.word_embeddings.weight; it belongs to another model",
    ),
    "more layers than said": (lambda folder: configure(folder, num_hidden_layers=1), "no place in this network"),
    "other sizes": (lambda folder: configure(folder, vocab_size=65), "config.json asks for"),
    "a head too few": (lambda folder: configure(folder, architectures=["BertForSequenceClassification"]), "lacks 4"),
    "other architecture": (lambda folder: configure(folder, architectures=["RobertaModel"]), "RobertaModel, but only"),
    "tokenizer cut": (lambda folder: cut(folder / "tokenizer.json"), "not a tokenizer"),
    "other tokenizer": (lambda folder: swap_specials(folder / "tokenizer.json"), "[CLS] has id 2, but"),
}


def weights_of(folder: Path) -> Path:
    return folder / "pytorch_model.bin"


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def configure(folder: Path, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def swap_specials(path: Path):
    path.write_text(path.read_text().replace("[CLS]", "[X]").replace("[SEP]", "[CLS]").replace("[X]", "[SEP]"))


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_checkpoints(case, variant, tmp_path, capsys):
    """One sentence that names the path, exit code 2, and no trace of an output."""
    damage, words = REFUSALS[case]
    source = variant()
    damage(source)
    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "deep" / "out")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"error: {source}") and words in message and message.endswith(".")
    assert not [path for path in tmp_path.iterdir() if path != source]


def test_large_tokenizer_is_refused(variant, tmp_path, capsys):
    source = variant()
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"A{i}": 13 + i for i in range(60)}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "out")]) == 2
    assert "73 tokens, but the model has embeddings for 64" in capsys.readouterr().err


def test_outputs_in_the_way(published, variant, tmp_path, capsys):
    """Nothing is replaced unasked, and nothing but a plain Hub folder at all."""

    def refused(output, *flags, checkpoint=published) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["--checkpoint", str(checkpoint), "--output", str(output), *flags]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    file.write_text("mine")
    assert "add --overwrite" in refused(full)
    assert "not a plain Hub folder" in refused(full, "--overwrite")
    assert "a file is in the way" in refused(file)
    assert "cannot be written" in refused(file / "out")
    assert "name the folder it is in" in refused(tmp_path / "out", checkpoint=file)
    run = tmp_path / "run"
    shutil.copytree(published, run / "checkpoint-5")
    shutil.copyfile(published / "config.json", run / "config.json")
    assert "not a plain Hub folder" in refused(run, "--overwrite", checkpoint=run / "checkpoint-5")
    more = tmp_path / "more"
    export(published, more, check=False)
    (more / "1_Pooling/notes.txt").write_text("mine")
    assert "not a plain Hub folder" in refused(more, "--overwrite")


def test_overwrite_replaces_a_hub_folder(published, tmp_path):
    output = tmp_path / "out"
    output.mkdir()  # an empty folder is no obstacle
    export(published, output, check=False)
    (output / "stale.bin").write_text("old")
    export(published, output, overwrite=True, check=False)
    assert not (output / "stale.bin").exists() and (output / "model.safetensors").is_file()
    export(output, output, overwrite=True, check=False)  # onto itself
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interruption_leaves_nothing(published, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    export(published, output, check=False)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(export_module, "smoke_load", interrupt)
    assert main(["--checkpoint", str(published), "--output", str(output), "--overwrite"]) == 130
    assert main(["--checkpoint", str(published), "--output", str(tmp_path / "new")]) == 130
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_smoke_load_sees_a_missing_module(exported, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(exported, folder)
    (folder / "losses.py").unlink()
    with pytest.raises(RuntimeError, match=r"losses"):
        smoke_load(folder)


def test_output_of_the_command(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_module, "smoke_load", lambda folder: None)
    assert main(["--checkpoint", str(published), "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}: DNABert2ForMaskedLM")
    assert len([line for line in lines if "AutoModelForMaskedLM" in line]) == 2 and len(lines) == 5


def test_saving_copies_the_network_alone(exported, tmp_path):
    """transformers 4 caches the code of all local folders of one name in one place."""
    cache, saved = tmp_path / "cache", tmp_path / "saved"
    shutil.copytree(exported, cache)
    (cache / "modeling_other.py").write_text("")
    assert save_code_beside(str(cache / "modeling_dnabert2.py"), saved)
    assert {path.name for path in saved.iterdir()} == {path.name for path in exported.glob("*.py")}
    assert not save_code_beside(str(ROOT / "modeling_dnabert2.py"), tmp_path / "none")


def test_self_containment_needs_a_saved_model(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        make_self_contained(tmp_path)
