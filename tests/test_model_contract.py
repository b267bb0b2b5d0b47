"""What Hugging Face promises of every model, and what ours says when it is used wrongly."""

import copy
import pickle

import accelerate
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig

from dnabert2 import (
    DNABert2Config,
    DNABert2ForMaskedLM,
    DNABert2ForSequenceClassification,
    DNABert2ForTokenClassification,
    DNABert2Model,
)

CLASSES = (DNABert2Model, DNABert2ForMaskedLM, DNABert2ForSequenceClassification, DNABert2ForTokenClassification)
HEADS = CLASSES[1:]


def labels_for(model_class, inputs):
    generator = torch.Generator().manual_seed(0)
    if model_class is DNABert2ForSequenceClassification:
        return torch.tensor([0, 1, 0])
    labels = torch.randint(0, 2, inputs["input_ids"].shape, generator=generator)
    return labels.masked_fill(inputs["attention_mask"] == 0, -100)


def same(actual, expected):
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-6)


# Inputs


def test_one_of_the_two_inputs(build, batch):
    model, ids = build(DNABert2Model), batch()["input_ids"]
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="Give either input_ids or inputs_embeds, and not both"):
            model(**wrong)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_inputs_embeds(model_class, backend, build, batch):
    model, inputs = build(model_class, backend), batch("mixed")
    with torch.no_grad():
        expected = model(**inputs)
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        same(model(**inputs, inputs_embeds=embeds), expected)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_inputs_embeds_without_a_mask_are_all_real(backend, build, batch):
    model, inputs = build(DNABert2Model, backend), batch("right")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    everything = torch.ones_like(inputs["attention_mask"])
    same(model(inputs_embeds=embeds), model(inputs_embeds=embeds, attention_mask=everything))


@pytest.mark.parametrize("shape", [(3, 11), (2, 12), (12,), (3, 1, 1, 12)])
def test_masks_that_do_not_fit(shape, build, batch):
    with pytest.raises(ValueError, match=r"attention_mask has shape .* but the input needs \(3, 12\)"):
        build(DNABert2Model)(batch()["input_ids"], torch.ones(shape))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("wrong", "held"), [(64, r"\d\.\.64"), (-1, r"-1\.\.\d+"), (4096, r"\d\.\.4096")])
def test_ids_outside_the_vocabulary(wrong, held, backend, build, batch):
    inputs = batch("none")
    inputs["input_ids"][1, 4] = wrong
    message = f"input_ids holds {held}, but the vocabulary has ids 0 to 63: use the tokenizer"
    with pytest.raises(ValueError, match=message):
        build(DNABert2Model, backend)(**inputs)


def test_segments_count_and_default_to_the_first(build, batch):
    model, inputs = build(DNABert2Model, "sdpa"), batch("mixed")
    types = inputs.pop("token_type_ids")
    assert types.any()
    same(model(**inputs), model(**inputs, token_type_ids=torch.zeros_like(types)))
    assert not torch.allclose(model(**inputs)[0], model(**inputs, token_type_ids=types)[0], atol=1e-2)


# Outputs


@pytest.mark.parametrize("model_class", CLASSES)
def test_tuples_hold_what_outputs_hold(model_class, build, batch):
    model, inputs = build(model_class), batch()
    if model_class is not DNABert2Model:
        inputs["labels"] = labels_for(model_class, inputs)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    output = model(**inputs, **wanted)
    as_tuple = model(**inputs, **wanted, return_dict=False)
    assert type(as_tuple) is tuple
    names = ["last_hidden_state", "pooler_output"] if model_class is DNABert2Model else ["loss", "logits"]
    assert list(output) == [*names, "hidden_states", "attentions"]
    assert [len(x) for x in as_tuple[2:]] == [3, 2]
    for place, name in enumerate(names):
        assert torch.equal(as_tuple[place], output[name]) and output[place] is output[name]
    model.config.output_hidden_states = True
    model.config.return_dict = False
    assert len(model(**inputs)) == 3


def test_without_labels_there_is_no_loss(build, batch):
    for model_class in HEADS:
        output = build(model_class)(**batch())
        assert list(output) == ["logits"] and output[0] is output.logits


def test_without_a_pooler(small_config, fill, batch):
    model = fill(DNABert2Model(small_config(), add_pooling_layer=False)).eval()
    assert not any("pooler" in key for key in model.state_dict())
    output = model(**batch())
    assert output.pooler_output is None and list(output) == ["last_hidden_state"]


# Losses


@pytest.mark.parametrize("model_class", [DNABert2ForMaskedLM, DNABert2ForTokenClassification])
def test_token_losses(model_class, build, batch):
    model, inputs = build(model_class, "sdpa"), batch("mixed")
    labels = labels_for(model_class, inputs)
    kept = labels != -100
    assert (labels[kept] == 0).any()
    output = model(**inputs, labels=labels)
    expected = F.cross_entropy(output.logits[kept], labels[kept])
    torch.testing.assert_close(output.loss, expected)
    # Half of the labelled tokens of a step of two: the loss is divided by what the Trainer counted.
    halved = model(**inputs, labels=labels, num_items_in_batch=2 * kept.sum()).loss
    torch.testing.assert_close(halved, expected / 2)
    ignored = model(**inputs, labels=torch.full_like(labels, -100))
    ignored.loss.backward()
    assert ignored.loss == 0
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("num_labels", "labels", "expected"),
    [
        (2, torch.tensor([0, 1, 1]), lambda x, y: F.cross_entropy(x, y)),
        (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 0]]), F.binary_cross_entropy_with_logits),
        (1, torch.tensor([0.5, -2.0, 3.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
    ],
)
def test_sequence_losses(num_labels, labels, expected, build, batch):
    """The kind of problem is told from each batch and never remembered: a model may see another kind next."""
    model = build(DNABert2ForSequenceClassification, num_labels=num_labels)
    output = model(**batch(), labels=labels)
    torch.testing.assert_close(output.loss, expected(output.logits, labels))
    halved = model(**batch(), labels=labels, num_items_in_batch=2 * labels.numel()).loss
    torch.testing.assert_close(halved, output.loss / 2)
    assert model.config.problem_type is None
    assert not model.config.to_diff_dict().get("problem_type")


def test_problem_type_of_the_configuration(build, batch):
    labels = torch.tensor([[1, 0], [0, 0], [1, 1]])
    model = build(DNABert2ForSequenceClassification, problem_type="multi_label_classification")
    output = model(**batch(), labels=labels)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels.float()))


def test_classifier_dropout(build, batch):
    assert build(DNABert2ForSequenceClassification).dropout.p == 0.1
    for model_class in (DNABert2ForSequenceClassification, DNABert2ForTokenClassification):
        assert build(model_class, classifier_dropout=0.0).dropout.p == 0.0


# Weights


def test_resize_keeps_ties_and_the_decoder_bias(build, batch):
    model, inputs = build(DNABert2ForMaskedLM), batch("mixed")
    before = model(**inputs).logits
    bias = model.cls.predictions.decoder.bias.detach().clone()
    for size in (70, 64):
        model.resize_token_embeddings(size)
        decoder, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        assert decoder.weight is embeddings.weight
        assert decoder.weight.shape == (size, 24) and decoder.bias.shape == (size,) == (model.config.vocab_size,)
        assert torch.equal(decoder.bias[:64], bias)
        torch.testing.assert_close(model(**inputs).logits[..., :64], before)
    assert embeddings.padding_idx == 3
    assert model(torch.tensor([[63]])).logits.shape == (1, 1, 64)


def test_ties(small_config, tmp_path):
    model = DNABert2ForMaskedLM(small_config())
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path)
    loaded = DNABert2ForMaskedLM.from_pretrained(tmp_path)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    untied = DNABert2ForMaskedLM(small_config(tie_word_embeddings=False))
    assert untied.cls.predictions.decoder.weight is not untied.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("model_class", CLASSES)
def test_new_weights(model_class, small_config):
    torch.manual_seed(0)
    model = model_class(small_config(hidden_size=96, intermediate_size=64, vocab_size=256))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif name.lower().endswith("layernorm.weight"):
            assert (value == 1).all(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.25), name
            assert abs(value.mean().item()) < 0.01, name
    assert (model.get_input_embeddings().weight[3] == 0).all()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, backend, build, batch):
    inputs = batch("mixed")
    inputs["labels"] = labels_for(DNABert2ForMaskedLM, inputs)
    gradients = []
    for checkpointing in (False, True):
        model = build(DNABert2ForMaskedLM, backend).train()
        calls = []
        model.bert.encoder.layer[1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)  # the same dropout in both
        model(**inputs).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)  # a checkpointed layer runs again in the backward pass
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name


# Moving, copying, offloading


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("model_class", CLASSES)
def test_copies(model_class, duplicate, build, batch):
    model = build(model_class, "sdpa")
    twin = duplicate(model)
    assert torch.equal(twin(**batch())[0], model(**batch())[0])
    twin.get_input_embeddings().weight.data.zero_()
    assert model.get_input_embeddings().weight.any()
    if model_class is DNABert2ForMaskedLM:
        assert twin.cls.predictions.decoder.weight is twin.get_input_embeddings().weight


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_offloading(model_class, where, build, batch, tmp_path):
    model = build(model_class, "sdpa", num_attention_heads=12)
    with torch.no_grad():
        expected = model(**batch("mixed"))
        if where == "cpu":
            model = accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
        else:
            model = accelerate.disk_offload(model, tmp_path, execution_device="cpu", offload_buffers=True)
        assert next(model.parameters()).is_meta
        same(model(**batch("mixed")), expected)


def test_a_stock_configuration_builds_the_same_network(small_config, fill, build, batch):
    """`pad_token_id` 0 of a BertConfig that was never told better is [UNK] in this family."""
    stock = BertConfig(
        **{key: getattr(small_config(), key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=3,
        intermediate_size=20,
        num_labels=5,
    )
    assert stock.pad_token_id == 0
    for model_class in CLASSES:
        model = fill(model_class(stock)).eval()
        assert type(model.config) is DNABert2Config
        assert model.config.pad_token_id == 3 and model.config.num_labels == 5
        model.set_attn_implementation("eager")
        inputs = batch("mixed")
        del inputs["attention_mask"]
        assert torch.equal(model(**inputs)[0], build(model_class, num_labels=5)(**inputs)[0])
