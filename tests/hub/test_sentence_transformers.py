"""Hub folders in sentence-transformers: the vectors of our own embedding, at any length, and when saved again."""

import json
import random
import shutil

import pytest
import torch

from dnabert2 import DNABert2Model
from dnabert2.hub.export import export
from dnabert2.inference.embedding import Embedding
from dnabert2.inference.models import load_encoder

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
pytestmark = pytest.mark.usefixtures("unregistered")


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("ACGT", k=bases)) for bases in (1, 700, 12, 90)] + ["ACGNNTTGACA"]


@pytest.fixture(scope="module")
def ours(exported, sequences):
    """Of `exported`, by the code of the package."""
    return torch.from_numpy(Embedding(load_encoder(str(exported)), window=None).vectors(sequences))


def encode(folder, sequences, **options) -> torch.Tensor:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    return model.encode(sequences, convert_to_tensor=True, **options)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_vectors_are_ours(batch_size, exported, sequences, ours):
    torch.testing.assert_close(encode(exported, sequences, batch_size=batch_size), ours, rtol=0, atol=1e-5)


def test_special_tokens_count_and_pads_do_not(exported, masked_lm, sequences, ours):
    """The readable form: one sequence at a time through the source of the weights."""
    tokenizer = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu").tokenizer
    for sequence, vector in zip(sequences, ours, strict=True):
        ids = tokenizer(sequence, return_tensors="pt").input_ids
        assert ids[0, 0] == 1 and ids[0, -1] == 2
        with torch.no_grad():
            mean = masked_lm.bert(ids).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(vector[None], mean, rtol=0, atol=1e-5)


def test_the_code_is_the_folders_and_no_pooler_is_made_up(exported):
    encoder = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")[0].auto_model
    assert type(encoder).__module__.startswith("transformers_modules.")
    assert encoder.pooler is None


def test_long_sequences_are_whole(exported):
    """No longest sequence is known: what changes the last bases of a long one changes its vector."""
    text = "".join(random.Random(1).choices("ACGT", k=20_000))
    one, other = encode(exported, [text, text[:-8] + "TTTTTTTT"])
    assert float((one - other).abs().max()) > 1e-5


def test_saved_again(exported, sequences, ours, tmp_path):
    SentenceTransformer(str(exported), trust_remote_code=True, device="cpu").save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modeling_dnabert2.py").is_file()
    torch.testing.assert_close(encode(tmp_path / "saved", sequences), ours, rtol=0, atol=1e-5)
    loaded = load_encoder(str(tmp_path / "saved"))
    torch.testing.assert_close(
        torch.from_numpy(Embedding(loaded, window=None).vectors(sequences)), ours, rtol=0, atol=1e-5
    )


def test_exported_once_more(exported, sequences, ours, tmp_path):
    """What sentence-transformers saved is a checkpoint, and a Hub folder that --overwrite replaces."""
    SentenceTransformer(str(exported), trust_remote_code=True, device="cpu").save(str(tmp_path / "saved"))
    export(tmp_path / "saved", tmp_path / "saved", overwrite=True, check=False)
    assert json.loads((tmp_path / "saved/modules.json").read_text()) == json.loads(
        (exported / "modules.json").read_text()
    )
    torch.testing.assert_close(encode(tmp_path / "saved", sequences), ours, rtol=0, atol=1e-5)


def test_of_an_encoder_alone(build, tokenizer_json, sequences, tmp_path):
    """Its pooler stays in the file and out of the way."""
    model = build(DNABert2Model, "sdpa")
    model.save_pretrained(tmp_path / "source")
    shutil.copyfile(tokenizer_json, tmp_path / "source/tokenizer.json")
    folder = export(tmp_path / "source", tmp_path / "encoder", check=False)
    expected = Embedding(load_encoder(str(tmp_path / "source")), window=None).vectors(sequences)
    torch.testing.assert_close(encode(folder, sequences), torch.from_numpy(expected), rtol=0, atol=1e-5)
