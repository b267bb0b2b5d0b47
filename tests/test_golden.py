"""Outputs of the published architecture under known weights, through every backend a CPU has."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM, DNABert2ForSequenceClassification

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["three_heads", "beyond_512_pairs"])
def golden(request, shared):
    folder = shared / "golden"
    values = json.loads((folder / f"{request.param}.json").read_text())
    return DNABert2Config.from_dict(values), load_file(folder / f"{request.param}.safetensors")


def inputs_of(tensors):
    return {key: tensors[key] for key in ("input_ids", "attention_mask", "token_type_ids")}


def load(model_class, config, backend, fill):
    model = fill(model_class(config)).eval()
    model.set_attn_implementation(backend)
    return model


@pytest.fixture(scope="module", params=["eager", "sdpa", "flex_attention"])
def backend(request):
    return request.param


def test_masked_lm(golden, backend, fill, relative_error):
    config, tensors = golden
    model = load(DNABert2ForMaskedLM, config, backend, fill)
    with torch.no_grad():
        output = model(**inputs_of(tensors), labels=tensors["labels"], output_hidden_states=True)
    hidden = output.hidden_states[-1]
    assert relative_error(hidden, tensors["last_hidden_state"]) < TOLERANCE
    assert relative_error(output.logits[:, tensors["logit_positions"]], tensors["mlm_logits"]) < TOLERANCE
    assert relative_error(output.loss[None], tensors["mlm_loss"]) < TOLERANCE
    assert (hidden[tensors["attention_mask"] == 0] == 0).all()


def test_sequence_classification(golden, backend, fill, relative_error):
    config, tensors = golden
    model = load(DNABert2ForSequenceClassification, config, backend, fill)
    assert config.num_labels == 3
    with torch.no_grad():
        logits = model(**inputs_of(tensors)).logits
    assert relative_error(logits, tensors["classification_logits"]) < TOLERANCE


def test_goldens_depend_on_what_they_check(golden, fill, relative_error):
    """A wrong slope, a wrong mask and forgotten segments each move the hidden states far beyond the tolerance."""
    config, tensors = golden
    model = load(DNABert2ForMaskedLM, config, "eager", fill).bert
    inputs = inputs_of(tensors)
    broken = [{**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}]
    if inputs["token_type_ids"].any():
        broken.append({**inputs, "token_type_ids": None})
    with torch.no_grad():
        for wrong in broken:
            assert relative_error(model(**wrong).last_hidden_state, tensors["last_hidden_state"]) > 100 * TOLERANCE
        model.alibi.bits.copy_(model.alibi().flip(0).contiguous().view(torch.int32))
        assert relative_error(model(**inputs).last_hidden_state, tensors["last_hidden_state"]) > 100 * TOLERANCE
