"""What a pretrained model has to beat: the majority class, logistic regression on k-mer counts, and a small CNN.

    from dnabert2.gue_eval.floors import FLOORS, FloorLimits
    result = FLOORS["kmer-logistic"]("kmer-logistic", {"train": (sequences, labels), "dev": ..., "test": ...},
                                     classes=["0", "1"], strandless=True, seed=42, device="cpu", limits=None)

None of them has seen DNA outside the training table. Each runs in seconds to minutes on two CPU cores. Whatever is
chosen - regularisation, transform, epoch - is chosen on the development table.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError
from ..training.metrics import classification_scores

Splits = dict[str, tuple[list[str], list[int]]]

KMERS = (3, 4, 5, 6)
STRENGTHS = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # inverse regularisation, of columns scaled to variance 1
TRANSFORMS: dict[str, Callable] = {
    "counts": lambda counts: counts,
    "square root": lambda counts: counts.sqrt(),
    "presence": lambda counts: counts.sign(),
}
WITHOUT_CHANCE = ("majority", "kmer-logistic")  # the same with every seed
CHOSEN_ON = "dev MCC"
SPACER = "N" * 32  # between the sequences of a pair: as many bases as a unit of the CNN sees
MOST_ITERATIONS = 200
MOST_TUNING_BASES = 16e6  # what the settings are tried on; of GUE, virus/covid alone has more


@dataclass(frozen=True)
class FloorLimits:
    """
    How much a floor may train.

    Attributes:
        bases: bases the CNN reads in all, both strands counted; epochs follow from it, so that a run repeats exactly.
        epochs: at most so many passes over the training table.
        seconds: the CNN stops at the end of the first epoch after so many; `None` for no limit.
    """

    bases: float = 60e6
    epochs: int = 30
    seconds: float | None = None


@dataclass
class FloorResult:
    """
    Attributes:
        dev_probabilities, test_probabilities: (rows, classes) float64.
        parameters: numbers that training set.
        settings: what was fixed and what was chosen, with the development scores of each choice.
        notes: sentences about what a reader should know of this run.
    """

    dev_probabilities: np.ndarray
    test_probabilities: np.ndarray
    parameters: int
    settings: dict
    train_seconds: float
    notes: list[str] = field(default_factory=list)


def joined(sequences: list[str], pairs: list[str] | None) -> list[str]:
    """
    Each row as one sequence, the second of a pair behind the first.

    No k-mer and no filter reads across what is between them, so that k-mers are those of both added up, and the CNN's
    maximum is over the places of both.
    """
    if pairs is None:
        return sequences
    return [f"{first}{SPACER}{second}" for first, second in zip(sequences, pairs, strict=True)]


def fixed_settings(name: str, strandless: bool, pairs: bool = False) -> dict:
    """What of a floor's settings is not chosen in training; by it a record is told from one of another version."""
    settings = {}
    if name == "kmer-logistic":
        strands = "both, added up" if strandless else "as given"
        settings = {"kmers": list(KMERS), "strands": strands, "chosen_on": CHOSEN_ON}
    elif name == "cnn":
        from .cnn import fixed_settings as of_cnn

        settings = of_cnn(strandless)
    return settings | ({"pairs": f"joined by {len(SPACER)} N"} if pairs else {})


def majority(name: str, splits: Splits, *, classes: list[str], **_) -> FloorResult:
    """The class that the training table has most of, with the classes' shares as probabilities; its MCC is 0."""
    start = time.perf_counter()
    counts = np.bincount(splits["train"][1], minlength=len(classes))
    shares = counts / counts.sum()
    dev, test = (np.tile(shares, (len(splits[split][1]), 1)) for split in ("dev", "test"))
    settings = {"shares": dict(zip(classes, shares.tolist(), strict=True))}
    return FloorResult(dev, test, len(classes), settings, time.perf_counter() - start)


def kmer_logistic(
    name: str,
    splits: Splits,
    *,
    classes: list[str],
    strandless: bool,
    seed: int = 42,
    device: str = "cpu",
    limits: FloorLimits | None = None,
) -> FloorResult:
    """
    Logistic regression with an L2 penalty on counts of 3- to 6-mers.

    The transform of the counts and the strength of the penalty are those with the best development MCC; of equals the
    one with the better development loss. A training table of very many bases is tried in part, and fitted whole. The
    fit is convex: `seed`, `device` and `limits` change nothing.

    Raises:
        UserError: if there is no development table.
    """
    from .kmer_counts import kmer_counts

    _need_dev(name, splits)
    start = time.perf_counter()
    counts = {split: kmer_counts(rows, KMERS, both_strands=strandless) for split, (rows, _) in splits.items()}
    labels = {split: np.asarray(ids) for split, (_, ids) in splits.items()}
    rows = _tuning_rows(splits["train"][0])
    tried, best, best_score = [], None, None
    for transform in TRANSFORMS:
        features = _features(counts, transform)
        for C, model in _path(features["train"][rows], labels["train"][rows]):
            dev = _spread(model, features["dev"], len(classes))
            mcc = classification_scores(labels["dev"], dev.argmax(axis=1))["matthews_correlation"]
            loss = float(-np.log(np.maximum(dev[np.arange(len(dev)), labels["dev"]], 1e-12)).mean())
            tried.append({"transform": transform, "C": C, "dev_mcc": round(mcc, 4), "dev_loss": round(loss, 4)})
            if best_score is None or (mcc, -loss) > best_score:
                best_score = mcc, -loss
                best = transform, C, dev, _spread(model, features["test"], len(classes))
    transform, C, dev, test = best
    if len(rows) < len(labels["train"]):
        features = _features(counts, transform)
        model = _new_model().set_params(C=C)
        _fit(model, features["train"], labels["train"])
        dev, test = (_spread(model, features[split], len(classes)) for split in ("dev", "test"))
    settings = {
        **fixed_settings(name, strandless),
        "transform": transform,
        "C": C,
        "tuned_on_rows": len(rows),
        "tried": tried,
    }
    columns, known = counts["train"].shape[1], len(np.unique(labels["train"]))
    parameters = (columns + 1) * (known if known > 2 else 1)
    return FloorResult(dev, test, parameters, settings, time.perf_counter() - start)


def _need_dev(name: str, splits: Splits):
    if "dev" not in splits or not splits["dev"][0]:
        raise UserError(f"{name} is tuned on a development table, but this task has none; add dev.csv.")


def _tuning_rows(sequences: list[str]) -> np.ndarray:
    """The training rows that the settings are tried on: all, or as many as make up MOST_TUNING_BASES, at random."""
    order = np.random.default_rng(0).permutation(len(sequences))
    bases = np.cumsum([len(sequences[i]) for i in order])
    return np.sort(order[: max(1, int((bases <= MOST_TUNING_BASES).sum()))])


def _features(counts: dict, transform: str) -> dict:
    """Columns divided by their standard deviation in the training table; not centred, so that zeros stay zeros."""
    from sklearn.preprocessing import StandardScaler

    tables = {split: TRANSFORMS[transform](table) for split, table in counts.items()}
    scaler = StandardScaler(with_mean=False).fit(tables["train"])
    return {split: scaler.transform(table) for split, table in tables.items()}


def _path(features, labels):
    """Yields (C, fitted model) from the strongest penalty to the weakest, each starting from the one before."""
    model = _new_model()
    for C in STRENGTHS:
        _fit(model.set_params(C=C), features, labels)
        yield C, model


def _new_model():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(warm_start=True, max_iter=MOST_ITERATIONS)


def _fit(model, features, labels):
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The weakest penalties need not converge to be tried: the development table judges what came out.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)


def _spread(model, features, classes: int) -> np.ndarray:
    """(rows, classes) probabilities; a class that the training table lacks has none."""
    probabilities = np.zeros((features.shape[0], classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities


def cnn(name: str, splits: Splits, **options) -> FloorResult:
    """The convolutional network of `cnn.py`, with its arguments."""
    from .cnn import fit_predict

    _need_dev(name, splits)
    return fit_predict(splits, **options)


FLOORS: dict[str, Callable[..., FloorResult]] = {"majority": majority, "kmer-logistic": kmer_logistic, "cnn": cnn}
