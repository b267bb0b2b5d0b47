"""The scikit-learn transformer: the vectors of `Embedding`, in pipelines, grids, pickles, tables and AnnData."""

import io
import pickle
import random
import shutil
from functools import partial
from threading import Thread

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from dnabert2 import DNABert2Embedder
from dnabert2.bundled import BUNDLED
from dnabert2.errors import UserError
from dnabert2.inference import embedder as embedder_module
from dnabert2.inference.embedding import Embedding
from dnabert2.inference.models import load_encoder
from dnabert2.tokenizer.policy import TextPolicy

SEQUENCES = ["ACGTAGCATCGGATCTATCT", "TTGACA", "GGGCGGGGCGTATATAAAAGCA" * 4]
embedder_of = partial(DNABert2Embedder, device="cpu")  # where the numbers that it is compared with are made
HIDDEN = 384
NAMES = [f"dnabert2embedder{i}" for i in range(HIDDEN)]


@pytest.fixture(scope="module")
def loaded():
    return load_encoder("mini")


@pytest.fixture(scope="module")
def vectors(loaded):
    return Embedding(loaded).vectors(SEQUENCES)


@pytest.fixture
def loads(monkeypatch):
    """The names of the networks that were loaded since the test began, which begins with none in memory."""
    names = []

    def counted(name, **options):
        names.append(name)
        return load_encoder(name, **options)

    monkeypatch.setattr(embedder_module, "load_encoder", counted)
    embedder_module._load.cache_clear()
    yield names
    embedder_module._load.cache_clear()


@pytest.fixture(scope="module")
def learnable() -> tuple[list[str], np.ndarray]:
    """Sequences rich in A and T, and others rich in G and C."""
    draw = random.Random(0)
    labels = np.array([0, 1] * 12)
    return ["".join(draw.choices("ACGT", ([3, 1, 1, 3], [1, 3, 3, 1])[k], k=60)) for k in labels], labels


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        lambda x: np.array(x, dtype=object),
        lambda x: np.array(x)[:, None],
        lambda x: pd.Series(x, index=["a", "b", "c"]),
        lambda x: pd.DataFrame({"sequence": x}),
    ],
    ids=["list", "tuple", "strings", "objects", "column", "series", "table"],
)
def test_every_form_of_input(form, vectors):
    found = embedder_of().fit_transform(form(SEQUENCES))
    assert found.dtype == np.float32 and found.shape == (3, HIDDEN)
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "max"},
        {"pooling": "cls", "layer": 2},
        {"layer": 0},
        {"window": 8, "overlap": 2},
        {"window": None},
        {"rc_average": True},
        {"batch_tokens": 16},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_settings_reach_the_network(settings, vectors):
    """The same as `Embedding` with them, and, where they matter, not the same as without."""
    encoder = load_encoder("mini", attn_implementation=settings.get("attn_implementation"))
    expected = Embedding(encoder, **{k: v for k, v in settings.items() if k != "attn_implementation"})
    found = embedder_of(**settings).transform(SEQUENCES)
    np.testing.assert_array_equal(found, expected.vectors(SEQUENCES))
    numbers_alone = settings.keys() & {"batch_tokens", "attn_implementation"} or settings == {"window": None}
    assert np.allclose(found, vectors, atol=1e-4) == bool(numbers_alone)


def test_the_mean_of_all_tokens(loaded, vectors):
    """The readable form: the network called on one sequence at a time."""
    for sequence, vector in zip(SEQUENCES, vectors, strict=True):
        with torch.no_grad():
            hidden = loaded.model(**loaded.tokenizer(sequence, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(dim=0).numpy(), atol=1e-5)


def test_half_precision_gives_float32():
    embedder = embedder_of(dtype="bfloat16")
    found = embedder.transform(SEQUENCES)
    assert found.dtype == np.float32
    assert embedder_module._network("mini", "cpu", "bfloat16", None, False).loaded.model.dtype == torch.bfloat16


def test_text_follows_the_policy(vectors):
    """Lower case, U and ambiguity codes as in the commands, unless a policy says otherwise."""
    texts = [text.lower().replace("t", "u") for text in SEQUENCES]
    np.testing.assert_array_equal(embedder_of().transform(texts), vectors)
    dropping = embedder_of(policy=TextPolicy(n="drop"))
    found = dropping.transform([SEQUENCES[1][:3] + "NNN" + SEQUENCES[1][3:]])
    np.testing.assert_allclose(found, vectors[1:2], atol=1e-5)


@pytest.mark.parametrize(
    "X, words",
    [
        (["ACGT", "ACGX"], "sequence 1 holds 'X'"),
        (["ACGT", ""], "sequence 1 is empty"),
        (["ACGT", "NNN"], "sequence 1 holds no base but N"),
        (["ACGT", "A", None], "sequence 2 is no text but None"),
        (np.array(["ACGT", float("nan")], dtype=object), "sequence 1 is no text but nan"),
        (pd.Series(["ACGT", "AC-GT"], index=["chr1", "chr2"]), "sequence 1 ('chr2') holds '-'"),
        ("ACGT", "one text"),
        (np.array([["ACGT", "ACGT"]]), "shape (1, 2)"),
        (pd.DataFrame({"id": ["a"], "sequence": ["ACGT"]}), "shape (1, 2)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fit", "transform", "embed"])
def test_bad_sequences(method, X, words):
    """A ValueError, as scikit-learn's users expect, and a UserError, as ours do: one sentence."""
    with pytest.raises(ValueError) as raised:
        getattr(embedder_of(), method)(X)
    message = str(raised.value)
    assert isinstance(raised.value, UserError) and words in message and message.endswith(".")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"pooling": "median"}, "pooling median: choose one of mean, cls, max."),
        ({"layer": 5}, "layer 5: the model has 4 layers"),
        ({"window": 64, "overlap": 62}, "give a longer window or a smaller overlap."),
        ({"batch_tokens": 0}, "batch_tokens 0: give at least 1"),
        ({"dtype": "int8"}, "'int8'"),
        ({"device": "tpu9"}, "device tpu9"),
        ({"model": "no/such/model"}, "no/such/model: no such folder"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_bad_settings(method, settings, words):
    with pytest.raises(ValueError) as raised:
        getattr(embedder_of(**settings), method)(SEQUENCES)
    assert isinstance(raised.value, UserError) and words in str(raised.value) and "--" not in str(raised.value)


def test_what_scikit_learn_asks_for():
    embedder = embedder_of(pooling="cls", policy=TextPolicy(n="drop"))
    assert clone(embedder).get_params() == embedder.get_params()
    assert DNABert2Embedder().get_params()["device"] == "auto"
    check_is_fitted(embedder)
    tags = get_tags(embedder)
    assert not tags.requires_fit and tags.input_tags.string and not tags.input_tags.two_d_array
    assert not hasattr(embedder, "n_features_out_")
    assert embedder.fit(SEQUENCES, [0, 1, 1]) is embedder and embedder.n_features_out_ == HIDDEN
    assert embedder.get_feature_names_out().tolist() == NAMES
    assert embedder.transform([]).shape == (0, HIDDEN)


def test_tables_out(vectors):
    embedder = embedder_of().set_output(transform="pandas")
    found = embedder.transform(pd.Series(SEQUENCES, index=["a", "b", "c"]))
    assert found.index.tolist() == ["a", "b", "c"] and found.columns.tolist() == NAMES
    np.testing.assert_array_equal(found.to_numpy(), vectors)
    assert embedder.fit_transform(SEQUENCES).columns.tolist() == NAMES
    pd.testing.assert_frame_equal(embedder.embed(SEQUENCES, ["a", "b", "c"]), found)


def test_beside_other_columns(vectors):
    table = pd.DataFrame({"gc": [0.5, 0.3, 0.6], "sequence": SEQUENCES})
    for column in ("sequence", ["sequence"]):
        columns = make_column_transformer((embedder_of(), column), ("passthrough", ["gc"]))
        np.testing.assert_allclose(columns.fit_transform(table), np.c_[vectors, table["gc"]], rtol=1e-6)
        assert columns.get_feature_names_out()[0].endswith("dnabert2embedder0")


def test_a_pipeline_learns(learnable):
    texts, labels = learnable
    model = make_pipeline(embedder_of(), LogisticRegression(max_iter=1000)).fit(texts[:16], labels[:16])
    assert model.score(texts[16:], labels[16:]) == 1.0
    assert model[:-1].get_feature_names_out().tolist() == NAMES


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_grid_over_pooling_and_layer(jobs, learnable, loads):
    """The scores are those of every setting alone, in this process and in others; here one network serves them all."""
    texts, labels = learnable
    grid = {"dnabert2embedder__pooling": ["mean", "max"], "dnabert2embedder__layer": [0, -1]}
    model = make_pipeline(embedder_of(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, grid, cv=2, n_jobs=jobs, error_score="raise", scoring="neg_log_loss")
    search.fit(texts, labels)
    assert loads == ["mini"]
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) == 4
    for settings, score in zip(search.cv_results_["params"], scores, strict=True):
        alone = cross_val_score(clone(model).set_params(**settings), texts, labels, cv=2, scoring="neg_log_loss")
        assert score == pytest.approx(alone.mean(), rel=1e-3)
    assert search.predict(texts).tolist() == labels.tolist()


def test_a_memory_keeps_the_vectors(learnable, tmp_path, monkeypatch):
    """`Pipeline(memory=...)` embeds once for every candidate behind the embedder."""
    texts, labels = learnable
    calls, vectors = [], Embedding.vectors
    monkeypatch.setattr(Embedding, "vectors", lambda self, texts: calls.append(len(texts)) or vectors(self, texts))
    model = make_pipeline(embedder_of(), LogisticRegression(max_iter=1000), memory=str(tmp_path))
    GridSearchCV(model, {"logisticregression__C": [0.1, 1, 10]}, cv=2, refit=False).fit(texts, labels)
    assert calls.count(12) == 2 + 3 * 2  # to train, once a fold; to score, which is not kept, for every candidate


@pytest.mark.parametrize("tool", [pickle, joblib])
def test_pickles_hold_no_network(tool, vectors, loads):
    embedder = embedder_of().fit(SEQUENCES)
    buffer = io.BytesIO()
    tool.dump(embedder, buffer)
    assert len(buffer.getvalue()) < 2_000
    buffer.seek(0)
    embedder_module._load.cache_clear()
    again = tool.load(buffer)
    assert loads == ["mini"] and again.n_features_out_ == HIDDEN
    np.testing.assert_array_equal(again.transform(SEQUENCES), vectors)
    assert loads == ["mini"] * 2


def test_a_network_is_loaded_once(loads):
    for settings in ({}, {"pooling": "max"}, {"layer": 1}, {"rc_average": True}, {"window": 16, "overlap": 2}):
        embedder_of(**settings).fit(SEQUENCES).transform(SEQUENCES)
    assert loads == ["mini"]
    embedder_of(dtype="bfloat16").fit(SEQUENCES)
    embedder_of().fit(SEQUENCES)
    assert loads == ["mini"] * 2


def test_a_folder_that_was_written_anew_is_loaded_anew(loads, vectors, tmp_path, build_anew):
    folder = shutil.copytree(BUNDLED["mini"], tmp_path / "model")
    embedder = embedder_of(str(folder))
    np.testing.assert_array_equal(embedder.transform(SEQUENCES), vectors)
    build_anew(folder)
    assert not np.allclose(embedder.transform(SEQUENCES), vectors, atol=0.1)
    assert len(loads) == 2


@pytest.fixture
def build_anew(loaded):
    """Function: other weights in a folder of `mini`."""

    def rewrite(folder):
        model = load_encoder(str(folder)).model
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.mul_(-1)
        model.save_pretrained(folder)

    return rewrite


def test_threads_share_a_network(vectors):
    """Each asks for another layer of the one network at the same time."""
    alone = {layer: embedder_of(layer=layer).transform(SEQUENCES) for layer in range(5)}
    wrong = []

    def work(layer):
        for _ in range(10):
            if not np.array_equal(embedder_of(layer=layer).transform(SEQUENCES), alone[layer]):
                wrong.append(layer)

    threads = [Thread(target=work, args=[layer]) for layer in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    np.testing.assert_array_equal(alone[4], vectors)


def test_a_table_of_vectors(vectors):
    table = embedder_of().embed(SEQUENCES, ids=["p1", "p2", "p3"])
    assert table.index.tolist() == ["p1", "p2", "p3"] and table.columns.tolist() == NAMES
    assert set(table.dtypes) == {np.dtype("float32")}
    np.testing.assert_array_equal(table.to_numpy(), vectors)
    named = pd.Series(SEQUENCES, index=pd.Index(["a", "b", "c"], name="peak"))
    assert embedder_of().embed(named).index.equals(named.index)
    assert embedder_of().embed(SEQUENCES).index.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="there are 2 ids for 3 sequences"):
        embedder_of().embed(SEQUENCES, ids=["p1", "p2"])


def test_anndata_takes_the_table(vectors):
    anndata = pytest.importorskip("anndata")
    ids = ["p1", "p2", "p3"]
    data = anndata.AnnData(embedder_of().embed(SEQUENCES, ids))
    assert data.obs_names.tolist() == ids and data.var_names.tolist() == NAMES
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, vectors)
