"""Any model: each architecture's row against a tiny model of it, from folder to logits, with and without LoRA.

DNABERT, Nucleotide Transformer v1, GROVER and ours are the real classes with random weights. HyenaDNA, Caduceus,
GENA-LM and Nucleotide Transformer v2 are stand-ins (tests/helpers/foreign_models.py): their own code is not here.
"""

import json

import foreign_models
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from dnabert2 import DNABert2ForMaskedLM
from dnabert2.architectures.adapters import add_lora
from dnabert2.architectures.encoding import TooManyTokens, encode, fit_tokenizer, max_tokens, prepare_text
from dnabert2.architectures.models import (
    architecture_of,
    head_modules,
    in_module,
    load_any_tokenizer,
    load_classifier,
    lora_targets,
)
from dnabert2.architectures.rows import Architecture, match_architecture
from dnabert2.errors import UserError
from dnabert2.tokenizer.files import OURS, write_tokenizer

LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
SEQUENCES = ["ACGTACGTTTACGGACGTAC", "ACGTTGCAAC", "TTTACGTACGTACG"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each architecture by its name."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    found = {f"DNABERT {k}": foreign_models.dnabert(root / f"dnabert{k}", k) for k in (3, 6)}
    for name in ("nucleotide_transformer", "nucleotide_transformer_v2", "grover", "gena_lm", "hyenadna", "caduceus"):
        found[name] = getattr(foreign_models, name)(root / name)
    found["ours"] = root / "ours"
    return found


@pytest.fixture(scope="module")
def ours(folders, small_config, fill):
    """Our layout, and the published one beside it."""
    model = fill(DNABert2ForMaskedLM(small_config(vocab_size=4096)))
    model.save_pretrained(folders["ours"])
    write_tokenizer(OURS / "tokenizer.json", folders["ours"])
    published = folders["ours"].with_name("published")
    write_tokenizer(OURS / "tokenizer.json", published)
    torch.save(model.state_dict(), published / "pytorch_model.bin")
    config = json.loads((folders["ours"] / "config.json").read_text())
    for key in ("model_type", "architectures"):
        del config[key]
    modules = {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "bert_layers.BertModel"}
    config |= {"alibi_starting_size": 512, "auto_map": modules}
    (published / "config.json").write_text(json.dumps(config))
    folders["published"] = published
    return folders


EXPECTED = {
    "ours": "DNABERT-2",
    "published": "DNABERT-2",
    "DNABERT 3": "DNABERT",
    "DNABERT 6": "DNABERT",
    "nucleotide_transformer": "Nucleotide Transformer",
    "nucleotide_transformer_v2": "Nucleotide Transformer v2",
    "grover": "GROVER",
    "gena_lm": "GENA-LM",
    "hyenadna": "HyenaDNA",
    "caduceus": "Caduceus",
}


def load(folder):
    architecture = architecture_of(folder, trust_remote_code=True)
    tokenizer = load_any_tokenizer(folder, architecture, True)
    torch.manual_seed(0)
    problem = "single_label_classification"
    model = load_classifier(folder, architecture, problem_type=problem, labels=LABELS, trust_remote_code=True)
    fit_tokenizer(tokenizer, model)
    return architecture, tokenizer, model.eval()


def logits_of(model, tokenizer, columns) -> torch.Tensor:
    batch = tokenizer.pad(columns, return_tensors="pt")
    with torch.no_grad():
        return model(**{name: batch[name] for name in columns}).logits


@pytest.mark.parametrize(("key", "by_hand"), [*((key, False) for key in EXPECTED), ("caduceus", True)])
def test_from_folder_to_logits_and_lora(ours, key, by_hand, with_mamba):
    folder = ours[key]
    architecture, tokenizer, model = load(folder)
    assert architecture.name == EXPECTED[key]
    columns = encode(tokenizer, SEQUENCES, None, architecture)
    assert tokenizer.unk_token_id not in {i for ids in columns["input_ids"] for i in ids}
    assert set(columns) == set(architecture.inputs)

    logits = logits_of(model, tokenizer, columns)
    assert logits.shape == (3, 3)
    assert model.config.problem_type == "single_label_classification" and model.config.id2label[2] == "c"
    alone = [logits_of(model, tokenizer, {name: rows[i : i + 1] for name, rows in columns.items()}) for i in range(3)]
    if key != "caduceus":  # has neither a mask nor a causal network
        torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-4

    heads = head_modules(architecture, model)
    targets = lora_targets(architecture, model) if by_hand else None
    adapted = add_lora(model, architecture, rank=2, alpha=4, dropout=0, targets=targets)
    adapted(
        **{n: t for n, t in tokenizer.pad(columns, return_tensors="pt").items() if n in columns}
    ).logits.sum().backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    adapters = {name: p for name, p in trained.items() if ".lora_" in name}
    assert adapters and all(".lora_" in n or any(f".{h}.modules_to_save" in n for h in heads) for n in trained)
    assert not any(in_module(name, head) for name in adapters for head in heads)
    # B is zero at first, so that the gradient of A is too.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in adapters.items() if ".lora_B" in name)


def test_every_known_layer_gets_its_adapter(ours):
    for key in ("ours", "DNABERT 3", "nucleotide_transformer"):
        architecture, _, model = load(ours[key])
        assert lora_targets(architecture, model) == list(architecture.lora)
        assert head_modules(architecture, model) == list(architecture.head)


def test_texts_and_lengths(folders):
    assert prepare_text("ACGTA", Architecture("x", kmer=3)) == "ACG CGT GTA"
    assert prepare_text("ACGTA", Architecture("x", kmer=1)) == "A C G T A"
    assert prepare_text("ACGTA", Architecture("x")) == "ACGTA"
    with pytest.raises(UserError, match="shorter than the 6 bases"):
        prepare_text("ACGTA", Architecture("x", kmer=6))
    expected = {
        "DNABERT 6": ["[CLS]", "ACGTTA", "CGTTAC", "GTTACC", "[SEP]"],
        "nucleotide_transformer": ["<cls>", "ACGTTA", "C", "C"],
        "hyenadna": [*"ACGTTACC", "[SEP]"],
    }
    for key, tokens in expected.items():
        architecture = architecture_of(folders[key], True)
        tokenizer = load_any_tokenizer(folders[key], architecture, True)
        ids = encode(tokenizer, ["ACGTTACC"], None, architecture)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(ids) == tokens


@pytest.mark.parametrize(
    ("key", "limit", "longest", "step"),
    [("DNABERT 3", 40, 40, 1), ("nucleotide_transformer", 20, 19 * 6, 6), ("hyenadna", 24, 23, 1)],
)
def test_the_greatest_length_runs_and_more_is_refused(ours, key, limit, longest, step):
    architecture, tokenizer, model = load(ours[key])
    assert max_tokens(architecture, model.config) == limit
    columns = encode(tokenizer, ["A" * longest], None, architecture, limit)
    assert len(columns["input_ids"][0]) == limit and logits_of(model, tokenizer, columns).isfinite().all()
    with pytest.raises(TooManyTokens, match=f"2 of 3 sequences have more than {limit} tokens, the first is number 2"):
        encode(tokenizer, ["A" * longest, *["A" * (longest + step)] * 2], None, architecture, limit)
    cut = encode(tokenizer, ["A" * (longest + step)], None, architecture, limit, truncation=True)
    assert len(cut["input_ids"][0]) == limit and all(len(rows[0]) == limit for rows in cut.values())


def test_byte_pairs_with_alibi_have_no_greatest_length(ours):
    architecture, _, model = load(ours["published"])
    assert max_tokens(architecture, model.config) is None


def test_pairs(ours):
    architecture = architecture_of(ours["DNABERT 3"])
    columns = encode(load_any_tokenizer(ours["DNABERT 3"], architecture), ["ACGT"], ["TTTT"], architecture)
    assert columns["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1]]
    architecture = architecture_of(ours["nucleotide_transformer"])
    tokenizer = load_any_tokenizer(ours["nucleotide_transformer"], architecture)
    with pytest.raises(UserError, match="single sequences only"):
        encode(tokenizer, ["ACGT"], ["TTTT"], architecture)


def test_code_of_repositories_runs_only_if_allowed(folders):
    for key in ("hyenadna", "gena_lm", "nucleotide_transformer_v2"):
        with pytest.raises(UserError, match="--trust_remote_code"):
            architecture_of(folders[key])
    # What stock BERT and ESM would load without a word is a class of the repository's own code.
    assert load(folders["gena_lm"])[2].is_of_gena_lm
    assert load(folders["nucleotide_transformer_v2"])[2].is_of_version_2


def test_code_of_an_unknown_repository_runs_only_if_allowed_and_only_where_it_can(folders, tmp_path):
    described = json.loads((folders["hyenadna"] / "config.json").read_text())
    folder = foreign_models.hyenadna(tmp_path / "unknown")
    (folder / "config.json").write_text(json.dumps({**described, "model_type": "unknown"}))
    with pytest.raises(UserError, match="a model of type unknown is code of its own repository"):
        architecture_of(folder)
    folder = foreign_models.gena_lm(tmp_path / "outdated")
    with open(folder / "modeling_bert.py", "a") as handle:
        handle.write("\nfrom transformers.pytorch_utils import of_an_earlier_version\n")
    with pytest.raises(UserError, match=r"does not run with transformers .*of_an_earlier_version"):
        load(folder)
    described = json.loads((folder / "config.json").read_text())
    del described["auto_map"]
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="names no code"):
        architecture_of(folder, True)


def test_a_weight_in_two_places_is_loaded(folders):
    model = load(folders["hyenadna"])[2]
    assert all(layer.filter[place].freq.item() == 2.5 for layer in model.hyena.layers for place in (0, 2))


def test_missing_packages_are_named(folders):
    architecture = architecture_of(folders["caduceus"], True)
    with pytest.raises(UserError, match="imports mamba_ssm, which is not installed"):
        load_classifier(
            folders["caduceus"], architecture, problem_type="regression", labels=LABELS, trust_remote_code=True
        )


def test_a_head_of_another_size_is_new_and_a_foreign_network_refused(folders, tmp_path):
    folder = tmp_path / "two"
    config = BertConfig(vocab_size=69, max_position_embeddings=40, num_labels=2, **foreign_models.SIZES)
    source = BertForSequenceClassification(config)
    source.save_pretrained(folder)
    architecture = architecture_of(folder)
    options = {"problem_type": "multi_label_classification", "labels": LABELS}
    model = load_classifier(folder, architecture, **options)
    assert model.classifier.weight.shape == (3, 16)
    torch.testing.assert_close(model.bert.pooler.dense.weight, source.bert.pooler.dense.weight)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match="16 weights of BertForSequenceClassification are not in its checkpoint"):
        load_classifier(folder, architecture, **options)
    (folder / "config.json").write_text(json.dumps({**described, "intermediate_size": 40}))
    with pytest.raises(UserError, match="have other shapes"):
        load_classifier(folder, architecture, **options)


def test_an_unknown_model_is_taken_as_it_is(tmp_path):
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    DistilBertForSequenceClassification(DistilBertConfig(vocab_size=40, **sizes)).save_pretrained(tmp_path)
    foreign_models.byte_pairs(40).save_pretrained(tmp_path)
    architecture, tokenizer, model = load(tmp_path)
    assert architecture.name == "a model of type distilbert" and max_tokens(architecture, model.config) is None
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]  # DistilBERT has no token types
    assert logits_of(model, tokenizer, encode(tokenizer, SEQUENCES, None, architecture)).shape == (3, 3)
    assert head_modules(architecture, model) == ["pre_classifier", "classifier"]
    targets = lora_targets(architecture, model)
    assert len(targets) == 6 and all(target.startswith("distilbert.transformer.layer.0.") for target in targets)


def test_names_decide_where_the_configuration_does_not():
    assert match_architecture("PoetschLab/GROVER", {"model_type": "bert"}).name == "GROVER"
    assert (
        match_architecture("zhihan1996/DNABERT-S", {"auto_map": {"AutoModel": "bert_layers.BertModel"}}).code == "ours"
    )
    assert match_architecture("me/mine", {"model_type": "bert", "vocab_size": 1029}).kmer == 5
    agro = match_architecture("InstaDeepAI/agro-nucleotide-transformer-1b", {"model_type": "esm"})
    assert agro.name == "Nucleotide Transformer"
    sparse = match_architecture("AIRI-Institute/gena-lm-bigbird-base-sparse", {"model_type": "bert"})
    assert sparse.name == "GENA-LM"


def test_what_is_no_model_of_dna_is_said_in_a_sentence(tmp_path, folders):
    with pytest.raises(UserError, match=r"has no config\.json"):
        architecture_of(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        architecture_of(tmp_path / "nowhere")
    folder = foreign_models.grover(tmp_path / "no-dna")
    foreign_models.byte_pairs(609, letters="acgt").save_pretrained(folder)
    with pytest.raises(UserError, match="no-dna: its tokenizer does not know DNA"):
        load_any_tokenizer(folder, architecture_of(folder))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no-dna: its tokenizer cannot be loaded"):
        load_any_tokenizer(folder, architecture_of(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"no-dna: .* damaged or cut short"):
        load_classifier(folder, architecture_of(folder), problem_type="regression", labels=LABELS)
