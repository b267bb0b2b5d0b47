"""The baseline with learned positions: the same network but for positions, limits, folders, and the pretrain verb."""

import json

import pytest
import torch
from corpora import TINY
from transformers import AutoModelForMaskedLM, TrainerCallback, set_seed

from dnabert2 import DNABert2ForMaskedLM
from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.loading import load_model
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training import pretrain as pretrain_module
from dnabert2.training.learned_positions import (
    LearnedPositionsConfig,
    LearnedPositionsForMaskedLM,
    TooLong,
    load_masked_lm,
)


@pytest.fixture
def twin(small_config, fill):
    """With a table of 16 positions, under known weights."""
    config = LearnedPositionsConfig(**small_config().to_dict() | {"max_position_embeddings": 16})
    model = LearnedPositionsForMaskedLM(config).eval()
    fill(model.network)
    return model


def without_slopes(model: DNABert2ForMaskedLM) -> DNABert2ForMaskedLM:
    model.bert.alibi.bits.zero_()
    return model


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", ["none", "right", "all_pad_row"])  # positions count from the left
def test_with_positions_of_zero_it_is_the_network_without_slopes(twin, build, batch, padding, backend, relative_error):
    twin.set_attn_implementation(backend)
    inputs = batch(padding)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        plain = without_slopes(build(DNABert2ForMaskedLM, backend))(ids, mask).logits
        with_slopes = build(DNABert2ForMaskedLM, backend)(ids, mask).logits
        placed = twin(ids, mask).logits
        twin.position_embeddings.weight.zero_()
        found = twin(ids, mask).logits
        derived = twin(ids).logits
    assert relative_error(found, plain) < 1e-6 and torch.equal(found, derived)
    for other in (with_slopes, placed):
        assert relative_error(found, other) > 0.01


def test_positions_count_from_the_first_token(twin, batch):
    """What the network is given: the same row at the same place of every sequence."""
    ids = batch("none")["input_ids"]
    words = twin.get_input_embeddings()(ids)
    seen = []
    hook = twin.network.bert.embeddings.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2]))
    twin(ids)
    hook.remove()
    assert torch.equal(seen[0].view_as(words), words + twin.position_embeddings.weight[: ids.shape[1]])


def test_gradients_reach_used_positions_alone(twin, batch):
    ids = batch("none")["input_ids"][:, :10].clone()
    ids[:, 8:] = twin.config.pad_token_id
    labels = ids.masked_fill(ids == twin.config.pad_token_id, -100)
    twin(ids, labels=labels).loss.backward()
    sizes = twin.position_embeddings.weight.grad.norm(dim=1)
    assert (sizes[:8] > 0).all() and (sizes[8:] == 0).all()
    assert all(p.grad is not None for p in twin.parameters())  # which DDP is told


def test_it_cannot_read_beyond_its_table(twin):
    ids = torch.full((1, 17), 7)
    assert twin(ids[:, :16]).logits.shape == (1, 16, 64)
    with pytest.raises(TooLong, match=r"^the input has 17 tokens, and the model 16 learned positions: cut it\.$"):
        twin(ids)
    assert issubclass(TooLong, ValueError)
    with pytest.raises(ValueError, match="max_position_embeddings must be a positive integer, not 0"):
        LearnedPositionsConfig(0)


def test_its_folder_is_no_model_of_ours(twin, tmp_path, batch, build):
    twin.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "dnabert2_learned" and "auto_map" not in config
    again = load_masked_lm(str(tmp_path)).eval()
    ids = batch("right")["input_ids"]
    assert type(again) is LearnedPositionsForMaskedLM and again.config.max_position_embeddings == 16
    assert torch.equal(again(ids).logits, twin(ids).logits)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(load_masked_lm(str(tmp_path), dtype=torch.bfloat16).network.bert.alibi(), torch.zeros(3))
    with pytest.raises(UserError, match="belongs to another model"):
        load_model("DNABert2ForMaskedLM", str(tmp_path))
    with pytest.raises(ValueError, match="dnabert2_learned"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    ours = tmp_path / "ours"
    build(DNABert2ForMaskedLM).save_pretrained(ours)
    assert type(load_masked_lm(str(ours))) is DNABert2ForMaskedLM
    with pytest.raises(UserError, match="belongs to another model"):
        load_model(LearnedPositionsForMaskedLM, str(ours))


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_folder_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="cannot be loaded as a DNABERT-2 model"):
        load_masked_lm(str(tmp_path))


class StopAfterSix(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


def test_the_pretrain_verb_trains_and_continues_it(corpus, tmp_path, pretrain_words, losses, monkeypatch):
    options = {"learned_positions": 40, "eval_steps": 12}
    assert main(["pretrain", *pretrain_words(corpus, tmp_path / "whole", **options)]) == 0

    class Stopping(pretrain_module.Pretrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.add_callback(StopAfterSix())

    words = pretrain_words(corpus, tmp_path / "parts", **options)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "Pretrainer", Stopping)
        assert main(["pretrain", *words]) == 130
    assert [path.name for path in (tmp_path / "parts").glob("checkpoint-*")] == ["checkpoint-4"]
    assert main(["pretrain", *words]) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    logged = losses(tmp_path / "whole")
    assert logged[-1]["eval_loss"] < logged[0]["loss"] - 0.1  # it learns
    assert not list((tmp_path / "whole").glob("*.py"))  # no code for a Hub folder
    model = load_masked_lm(str(tmp_path / "whole"))
    assert model.position_embeddings.weight.shape == (40, 32)
    # Sequences have 32 tokens: weight decay aside, the rows beyond are as they were drawn.
    set_seed(42)
    arguments = pretrain_module.ModelArguments(config_overrides=TINY, learned_positions=40)
    drawn = pretrain_module.build_model(arguments, load_tokenizer(corpus / "tokenizer"))
    moved = (model.position_embeddings.weight - drawn.position_embeddings.weight).norm(dim=1)
    assert moved[:32].min() > 0.01 and moved[32:].max() < 1e-6


def test_bad_input(corpus, tmp_path, pretrain_words, capsys):
    def fails_with(message, **options):
        assert main(["pretrain", *pretrain_words(corpus, tmp_path / "out", **options)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "out" / "run.json").exists()

    fails_with("--learned_positions 31: sequences have 32 tokens", learned_positions=31)
    fails_with("--learned_positions 0: sequences have 32 tokens", learned_positions=0)
    fails_with(
        "--learned_positions trains a baseline from scratch",
        learned_positions=32,
        config_overrides=None,
        model_name_or_path=tmp_path,
    )
