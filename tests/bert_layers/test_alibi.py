"""ALiBi: slopes, the buffer that keeps them whatever is done to a model, and the two forms of the bias."""

import copy
import io
import pickle

import pytest
import torch

from dnabert2 import DNABert2Model
from dnabert2.bert_layers.alibi import AlibiSlopes, alibi_bias, alibi_slopes, flipped_alibi_bias

# Four of the published twelve are no power of two, hence not what they were after a trip through bfloat16.
TWELVE = [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (3, [2**-4, 2**-8, 2**-2]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (8, [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8]),
        (12, TWELVE),
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
    ],
)
def test_slopes(num_heads, expected):
    assert alibi_slopes(num_heads) == pytest.approx(expected, rel=1e-15)


def test_no_slopes_without_heads():
    with pytest.raises(ValueError, match="num_heads must be at least 1"):
        alibi_slopes(0)


@pytest.mark.parametrize("num_heads", [1, 3, 8, 12])
@pytest.mark.parametrize("length", [1, 2, 7, 130])
def test_flipped_bias_is_the_bias_reversed(num_heads, length):
    slopes = torch.tensor(alibi_slopes(num_heads))
    whole, flipped = alibi_bias(slopes, length), flipped_alibi_bias(slopes, length)
    assert whole.dtype == flipped.dtype == torch.float32
    assert torch.equal(flipped, whole.flip(1))
    assert flipped.stride(-1) == 1
    # Memory grows with the length, not with its square.
    assert flipped.untyped_storage().nbytes() == num_heads * (2 * length - 1) * 4


def test_bias_is_exact_and_symmetric_far_from_the_diagonal():
    bias = alibi_bias(torch.tensor(TWELVE), 1025)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert torch.equal(bias, bias.flip(1, 2))
    assert bias[0, 0, 1024] == -512.0  # bfloat16 would be in steps of 4 here
    assert bias[0, 1, 1024] == -511.5
    assert (bias.diagonal(dim1=1, dim2=2) == 0).all()


def reload_in(dtype):
    def reload(model, folder):
        model.save_pretrained(folder)
        return DNABert2Model.from_pretrained(folder, dtype=dtype)

    return reload


def from_meta(model, folder):
    with torch.device("meta"):
        empty = DNABert2Model(model.config)
    assert empty.alibi.bits.is_meta
    empty = empty.to_empty(device="cpu")
    empty.alibi.bits.fill_(-1)  # whatever the allocator left there
    for module in empty.modules():  # transformers 4 remembers that it initialised them, on the meta device
        module._is_hf_initialized = False
    empty.init_weights()
    return empty


def through_pickle(model, folder):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model, folder):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


SURVIVALS = {
    "as built": lambda model, folder: model,
    "to bfloat16": lambda model, folder: model.to(torch.bfloat16),
    "bfloat16()": lambda model, folder: model.bfloat16(),
    "half": lambda model, folder: model.half(),
    "half and back": lambda model, folder: model.half().float(),
    "double": lambda model, folder: model.double(),
    "from_pretrained": reload_in("auto"),
    "from_pretrained in bfloat16": reload_in(torch.bfloat16),
    "from_pretrained in float16": reload_in(torch.float16),
    "meta device": from_meta,
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": through_pickle,
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("survival", SURVIVALS)
def test_slopes_survive(survival, small_config, tmp_path):
    model = DNABert2Model(small_config(num_attention_heads=12, num_hidden_layers=1))
    slopes = SURVIVALS[survival](model, tmp_path).alibi()
    assert slopes.dtype == torch.float32
    assert torch.equal(slopes, torch.tensor(TWELVE, dtype=torch.float32))


def test_slopes_are_no_part_of_a_checkpoint():
    assert not AlibiSlopes(12).state_dict()
