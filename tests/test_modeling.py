"""The network as a whole: backends agree, pads change nothing, ALiBi is symmetric, every precision works."""

import pytest
import torch

from dnabert2 import DNABert2ForMaskedLM, DNABert2ForSequenceClassification, DNABert2Model, modeling_dnabert2

BACKENDS = ("eager", "sdpa", "flex_attention")
# Two layers of fp32 rounding in different orders of summation.
TOLERANCE = 5e-6


def hidden_states(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def last(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@pytest.mark.parametrize("length", [1, 33, 130])
def test_backends_agree_on_values(length, padding, build, batch, relative_error):
    inputs = batch(padding, length)
    mask = inputs["attention_mask"]
    expected = hidden_states(build(DNABert2Model), inputs)
    assert len(expected) == 3
    for backend in BACKENDS[1:]:
        states = hidden_states(build(DNABert2Model, backend), inputs)
        for state, reference in zip(states, expected, strict=True):
            assert not state.isnan().any()
            assert relative_error(state, reference) < TOLERANCE, backend
            assert (state[mask == 0] == 0).all(), backend
            assert (state[mask == 1] != 0).any(-1).all(), backend


@pytest.mark.parametrize("length", [1, 5, 33, 130])
def test_sdpa_agrees_on_gradients(length, padding, build, batch):
    """Of every parameter and of the inputs."""
    inputs = batch(padding, length)
    gradients = {}
    for backend in ("eager", "sdpa"):
        model = build(DNABert2ForMaskedLM, backend)
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        rest = {key: value for key, value in inputs.items() if key != "input_ids"}
        output = model(inputs_embeds=embeds, **rest)
        direction = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(0))
        (output.logits * direction).sum().backward()
        named = [*model.named_parameters(), ("inputs_embeds", embeds)]
        gradients[backend] = {name: value.grad for name, value in named}
    assert gradients["eager"].keys() == gradients["sdpa"].keys()
    for name, expected in gradients["eager"].items():
        actual = gradients["sdpa"][name]
        assert actual.isfinite().all()
        # Gradients of a softmax over one key are rounding errors alone: hence the absolute part.
        scale = max(expected.abs().max(), 1e-2)
        assert (actual - expected).abs().max() / scale < 2e-5, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "mixed", "holes", "all_pad_row"])
def test_half_precision(dtype, kind, build, batch):
    """Error against float32 at most twice that of eager in the same precision."""
    inputs = batch(kind, 33)
    exact = last(build(DNABert2Model), inputs)
    errors = {}
    for backend in BACKENDS:
        hidden = last(build(DNABert2Model, backend).to(dtype), inputs)
        assert hidden.dtype == dtype
        assert (hidden[inputs["attention_mask"] == 0] == 0).all()
        errors[backend] = (hidden.float() - exact).norm() / exact.norm()
    assert errors["eager"] < 8 * torch.finfo(dtype).eps
    assert max(errors.values()) <= 2 * errors["eager"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_does_not_see_its_batch(backend, build, batch, relative_error):
    """Alone and without pads, every sequence gets the hidden states it gets in the batch."""
    model = build(DNABert2Model, backend)
    inputs = batch("mixed", 33)
    together = last(model, inputs)
    for row in range(3):
        real = inputs["attention_mask"][row] == 1
        alone = last(model, {key: value[row : row + 1, real] for key, value in inputs.items()})
        assert relative_error(alone[0], together[row, real]) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_order_does_not_matter(backend, build, batch, relative_error):
    model = build(DNABert2Model, backend)
    inputs = batch("mixed", 33)
    order = torch.tensor([2, 0, 1])
    permuted = last(model, {key: value[order] for key, value in inputs.items()})
    assert relative_error(permuted, last(model, inputs)[order]) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_pads_change_nothing(backend, build, batch, relative_error):
    """On either side, whatever ids stand under them."""
    model = build(DNABert2Model, backend)
    inputs = batch("right", 12)
    for left, right in ((0, 5), (5, 0), (3, 4)):
        wider = {key: torch.nn.functional.pad(value, (left, right), value=0) for key, value in inputs.items()}
        wider["input_ids"] = wider["input_ids"].masked_fill(wider["attention_mask"] == 0, 7)
        hidden = last(model, wider)
        assert relative_error(hidden[:, left : left + 12], last(model, inputs)) < TOLERANCE
        assert (hidden[:, :left] == 0).all() and (hidden[:, left + 12 :] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_alibi_is_symmetric(backend, build, batch, padding, relative_error):
    """Reversed tokens get reversed hidden states; in another order they do not, so places do count."""
    model = build(DNABert2Model, backend)
    inputs = batch(padding, 12)
    hidden = last(model, inputs)
    reversed_hidden = last(model, {key: value.flip(1) for key, value in inputs.items()})
    assert relative_error(reversed_hidden.flip(1), hidden) < TOLERANCE
    shifted = last(model, {key: value.roll(5, 1) for key, value in inputs.items()})
    assert relative_error(shifted.roll(-5, 1), hidden) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_mask_is_derived_from_the_pad_id(backend, build, batch):
    model = build(DNABert2Model, backend)
    inputs = batch("mixed")
    mask = inputs.pop("attention_mask")
    assert torch.equal(inputs["input_ids"] == 3, mask == 0)
    assert torch.equal(last(model, inputs), last(model, {**inputs, "attention_mask": mask}))
    # A mask that is given wins, and without a pad id every token is real.
    everything = last(model, {**inputs, "attention_mask": torch.ones_like(mask)})
    assert (everything != 0).any(-1).all()
    model.config.pad_token_id = None
    assert torch.equal(last(model, inputs), everything)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_masks_of_any_type(dtype, build, batch):
    model = build(DNABert2Model, "sdpa")
    inputs = batch("mixed")
    expected = last(model, inputs)
    assert torch.equal(last(model, {**inputs, "attention_mask": inputs["attention_mask"].to(dtype)}), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_maps_come_from_eager(backend, build, batch, padding, relative_error):
    inputs = batch(padding)
    mask = inputs["attention_mask"] == 1
    expected = last(build(DNABert2Model), inputs)
    model = build(DNABert2Model, backend)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    assert relative_error(output.last_hidden_state, expected) < TOLERANCE
    assert [weights.shape for weights in output.attentions] == [(3, 3, 12, 12)] * 2
    for weights in output.attentions:
        real_rows = mask.any(1)
        to_pads = (real_rows[:, None] & ~mask)[:, None, None].expand_as(weights)
        assert (weights[to_pads] == 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 12))
    assert model.config._attn_implementation == backend


def test_falling_back_is_said_once(build, batch, caplog):
    model = build(DNABert2Model, "sdpa")
    modeling_dnabert2.logger.warning_once.cache_clear()
    for _ in range(2):
        model(**batch(), output_attentions=True)
    assert [record.getMessage() for record in caplog.records] == [
        'Attention maps come from "eager" attention, used here instead of "sdpa".'
    ]


@pytest.mark.parametrize("training", [False, True])
def test_flex_attention_with_gradients_on_a_cpu_uses_sdpa(training, build, batch):
    """PyTorch refuses tensors that need a gradient there, in evaluation too."""
    inputs = batch("right")
    gradients = []
    for backend in ("sdpa", "flex_attention"):
        model = build(DNABert2Model, backend, hidden_dropout_prob=0.0).train(training)
        model(**inputs).last_hidden_state.square().sum().backward()
        gradients.append(model.encoder.layer[0].attention.self.Wqkv.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("backend", "kind", "packed"),
    [
        ("eager", "mixed", False),
        ("sdpa", "mixed", True),
        ("sdpa", "left", True),
        ("sdpa", "holes", False),
        ("flex_attention", "right", True),
        ("flex_attention", "all_pad_row", True),
    ],
)
def test_pads_are_left_out_of_the_computation(backend, kind, packed, build, batch):
    model = build(DNABert2Model, backend)
    inputs = batch(kind)
    shapes = []
    for part in (model.embeddings.LayerNorm, model.encoder.layer[0].mlp, model.encoder.layer[1].attention.self.Wqkv):
        part.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    last(model, inputs)
    tokens = int(inputs["attention_mask"].sum())
    assert shapes == [(tokens, 24) if packed else (3, 12, 24)] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_classifier_reads_the_first_real_token(backend, build, batch, relative_error):
    model = build(DNABert2ForSequenceClassification, backend)
    right = batch("right")
    left = {key: value.clone() for key, value in right.items()}
    for row, count in enumerate(right["attention_mask"].sum(1)):
        for value in left.values():
            value[row] = value[row].roll(12 - int(count))
    assert (left["attention_mask"][:, -1] == 1).all() and not torch.equal(left["input_ids"], right["input_ids"])
    with torch.no_grad():
        assert relative_error(model(**left).logits, model(**right).logits) < TOLERANCE
        pooled = model.bert(**left)
        first = pooled.last_hidden_state[torch.arange(3), left["attention_mask"].argmax(1)]
        torch.testing.assert_close(pooled.pooler_output, torch.tanh(model.bert.pooler.dense(first)))
        torch.testing.assert_close(model(**left).logits, model.classifier(pooled.pooler_output))


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_is_deterministic_and_dropout_is_not(backend, build, batch):
    model = build(DNABert2Model, backend)
    inputs = batch("mixed")
    assert torch.equal(last(model, inputs), last(model, inputs))
    model.train()
    assert not torch.equal(last(model, inputs), last(model, inputs))
    torch.manual_seed(0)
    once = last(model, inputs)
    torch.manual_seed(0)
    assert torch.equal(last(model, inputs), once)
