"""`transformers.pipeline` on Hub folders and on folders that training saved: the network's own numbers."""

import pytest
import torch
from transformers import pipeline

from dnabert2 import DNABert2ForMaskedLM, DNABert2ForSequenceClassification, DNABert2ForTokenClassification
from dnabert2.hub.export import export
from dnabert2.remote_code import make_self_contained
from dnabert2.tokenizer.files import wrap_tokenizer

pytestmark = pytest.mark.usefixtures("unregistered")

SEQUENCES = ["ACGTACGTTTGACAACCAGT", "ACGTT", "TTGACAN"]
LABELS = {0: "other", 1: "promoter", 2: "enhancer"}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json):
    return wrap_tokenizer(tokenizer_json)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, build, tokenizer):
    """Factory: a model and a folder of it, as the Trainer saves it, or exported from there."""

    def make(model_class, how: str, **overrides):
        model = build(model_class, "sdpa", **overrides)
        place = tmp_path_factory.mktemp("models")
        model.save_pretrained(place / "saved")
        tokenizer.save_pretrained(place / "saved")
        if how == "exported":
            return model, export(place / "saved", place / "exported", check=False)
        make_self_contained(place / "saved")
        return model, place / "saved"

    return make


@pytest.fixture(params=["saved", "exported"])
def how(request) -> str:
    return request.param


def ask(task: str, folder, texts, **options):
    made = pipeline(task, str(folder), trust_remote_code=True, device="cpu", **options)
    assert type(made.model).__module__.startswith("transformers_modules.")
    return made(texts)


@torch.no_grad()
def direct(model, tokenizer, text: str):
    """The first output for one sequence."""
    return model(**tokenizer(text, return_tensors="pt"))[0][0]


def test_feature_extraction(how, folder, tokenizer):
    model, place = folder(DNABert2ForMaskedLM, how)
    for text, found in zip(SEQUENCES, ask("feature-extraction", place, SEQUENCES), strict=True):
        torch.testing.assert_close(torch.tensor(found[0]), direct(model.bert, tokenizer, text), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_fill_mask(how, batch_size, folder, tokenizer):
    model, place = folder(DNABert2ForMaskedLM, how, vocab_size=len(tokenizer))
    texts = ["ACGT[MASK]TTGACA", "AC[MASK]"]
    for text, found in zip(texts, ask("fill-mask", place, texts, batch_size=batch_size, top_k=3), strict=True):
        logits = direct(model, tokenizer, text)
        place_of_mask = tokenizer(text).input_ids.index(tokenizer.mask_token_id)
        scores, ids = logits[place_of_mask].softmax(-1).topk(3)
        assert [answer["token"] for answer in found] == ids.tolist()
        assert [answer["score"] for answer in found] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [answer["token_str"] for answer in found] == tokenizer.convert_ids_to_tokens(ids.tolist())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification(how, batch_size, folder, tokenizer):
    model, place = folder(DNABert2ForSequenceClassification, how, id2label=LABELS)
    answers = ask("text-classification", place, SEQUENCES, batch_size=batch_size, top_k=None)
    for text, found in zip(SEQUENCES, answers, strict=True):
        expected = dict(zip(LABELS.values(), direct(model, tokenizer, text).softmax(-1).tolist(), strict=True))
        assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(expected, abs=1e-5)


def test_text_classification_of_pairs(how, folder, tokenizer):
    """With token types that tell the two apart."""
    model, place = folder(DNABert2ForSequenceClassification, how, id2label=LABELS)
    found = ask("text-classification", place, {"text": "ACGTT", "text_pair": "TTGACA"}, top_k=None)
    with torch.no_grad():
        inputs = tokenizer("ACGTT", "TTGACA", return_tensors="pt")
        scores = model(**inputs).logits[0].softmax(-1).tolist()
    assert 1 in inputs["token_type_ids"]
    expected = dict(zip(LABELS.values(), scores, strict=True))
    assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_classification(how, batch_size, folder, tokenizer):
    """One entity a token, at the bases that the token stands for; together they cover the sequence."""
    model, place = folder(DNABert2ForTokenClassification, how, id2label=LABELS)
    answers = ask("token-classification", place, SEQUENCES, batch_size=batch_size, ignore_labels=[])
    for text, entities in zip(SEQUENCES, answers, strict=True):
        scores, ids = direct(model, tokenizer, text)[1:-1].softmax(-1).max(-1)  # without [CLS] and [SEP]
        assert [entity["entity"] for entity in entities] == [LABELS[i] for i in ids.tolist()]
        assert [float(entity["score"]) for entity in entities] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [entity["index"] for entity in entities] == list(range(1, len(ids) + 1))
        spans = [(entity["start"], entity["end"]) for entity in entities]
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])] and spans[-1][1] == len(text)
        words = [entity["word"] for entity in entities]
        assert all(text[a:b] == word or word == "[UNK]" for (a, b), word in zip(spans, words, strict=True))


def test_neighbouring_tokens_of_a_class_are_one_stretch(how, folder, tokenizer):
    """What `aggregation_strategy` makes of classes of tokens."""
    model, place = folder(DNABert2ForTokenClassification, how, id2label=LABELS)
    text = SEQUENCES[0]
    stretches = ask("token-classification", place, text, aggregation_strategy="simple", ignore_labels=[])
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][1:-1]
    classes = direct(model, tokenizer, text)[1:-1].argmax(-1).tolist()
    expected = []
    for (start, end), label in zip(offsets, classes, strict=True):
        if expected and expected[-1][0] == LABELS[label]:
            expected[-1] = (LABELS[label], expected[-1][1], end)
        else:
            expected.append((LABELS[label], start, end))
    assert [(s["entity_group"], s["start"], s["end"]) for s in stretches] == expected
    assert len(expected) < len(classes)
