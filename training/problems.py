"""What a table's labels mean: classes, several yes-or-no labels, numbers, or a class for every base.

Each kind of problem says how labels become targets, how logits become probabilities, predictions and scores, and what
a finished model's configuration calls its outputs. `problem_of` chooses one for a training table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    classification_scores,
    multi_label_scores,
    regression_scores,
)
from .tables import (
    IGNORE,
    Table,
    class_names,
    float_labels,
    label_ids,
    multi_label_ids,
    per_base_ids,
    per_base_names,
)


@dataclass(frozen=True)
class Problem:
    """
    Single-label classification, and what the other kinds share.

    Args:
        values: the classes as the tables write them, or the label columns.
        names: what they are called; by default as they are written.
    """

    values: tuple[str, ...]
    names: tuple[str, ...] = ()
    kind = "single_label_classification"
    default_metric = "matthews_correlation"
    scores = CLASSIFICATION
    score = staticmethod(classification_scores)

    def __post_init__(self):
        names = tuple(self.names) or self.values
        if len(names) != len(self.values) or len(set(names)) != len(names):
            raise UserError(
                f"--class_names {' '.join(names)}: give {len(self.values)} different names, for "
                f"{', '.join(self.values)} in this order."
            )
        object.__setattr__(self, "names", names)

    @property
    def labels(self) -> dict:
        """`id2label` and `label2id` of the model's configuration."""
        return {"id2label": dict(enumerate(self.names)), "label2id": {name: i for i, name in enumerate(self.names)}}

    @property
    def problem_type(self) -> str | None:
        """As the configuration says it."""
        return self.kind

    def targets(self, table: Table) -> list:
        """One target a row, as the model takes them."""
        return label_ids(table, list(self.values))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(rows, classes) of each."""
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """(rows,) class ids."""
        return logits.argmax(axis=-1)

    def score_arrays(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
        """What `score` takes, in its order."""
        return targets, self.predictions(logits), self.probabilities(logits)

    def weights(self, targets: list) -> np.ndarray:
        """Balanced weights of the classes, each inverse to how often it occurs, 1 on average over the rows."""
        counts = np.bincount(np.concatenate([np.ravel(t) for t in targets]).astype(int), minlength=len(self.names))
        return counts.sum() / (len(self.names) * np.maximum(counts, 1))

    def columns(self, table: Table, logits: np.ndarray) -> dict[str, list]:
        """Columns of the predictions' table: the label as written, the prediction and each class's probability."""
        probabilities = self.probabilities(logits)
        return {
            "label": [self.names[i] for i in self.targets(table)],
            "prediction": [self.names[i] for i in self.predictions(logits)],
            **{f"probability_{name}": probabilities[:, i] for i, name in enumerate(self.names)},
        }


@dataclass(frozen=True)
class MultiLabel(Problem):
    """Several labels, each there or not."""

    kind = "multi_label_classification"
    scores = MULTI_LABEL
    score = staticmethod(multi_label_scores)

    def targets(self, table: Table) -> list:
        return list(multi_label_ids(table))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(0.5 * logits))  # the logistic function, without overflow

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return (logits > 0).astype(int)

    def score_arrays(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
        return targets, self.probabilities(logits)

    def weights(self, targets: list) -> np.ndarray:
        """Of each label, how much a row that has it counts: as much together as the rows that have not."""
        found = np.asarray(targets).mean(axis=0)
        found = np.clip(found, 1 / len(targets), 1 - 1 / len(targets))  # of labels that no row or every row has
        return (1 - found) / found

    def columns(self, table: Table, logits: np.ndarray) -> dict[str, list]:
        probabilities, predictions = self.probabilities(logits), self.predictions(logits)
        columns = {}
        for i, name in enumerate(self.names):
            columns |= {name: [cells[i] for cells in table.labels], f"prediction_{name}": predictions[:, i]}
            columns[f"probability_{name}"] = probabilities[:, i]
        return columns


@dataclass(frozen=True)
class Regression(Problem):
    """One number or several."""

    kind = "regression"
    default_metric = "pearson"
    scores = REGRESSION
    score = staticmethod(regression_scores)

    def targets(self, table: Table) -> list:
        return list(float_labels(table))

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def score_arrays(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
        return targets, logits

    def columns(self, table: Table, logits: np.ndarray) -> dict[str, list]:
        values = float_labels(table)
        if len(self.names) == 1:
            return {"label": values[:, 0], "prediction": logits[:, 0]}
        columns = {}
        for i, name in enumerate(self.names):
            columns |= {name: values[:, i], f"prediction_{name}": logits[:, i]}
        return columns


@dataclass(frozen=True)
class Bases(Problem):
    """A class for every base; logits and targets are those of the labelled bases of all rows, in order."""

    kind = "base_classification"
    problem_type = None

    def targets(self, table: Table) -> list:
        return per_base_ids(table, list(self.values))

    def weights(self, targets: list) -> np.ndarray:
        return super().weights([[label for row in targets for label in row if label != IGNORE]])

    def score_arrays(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
        labelled = targets != IGNORE
        return super().score_arrays(logits[labelled], targets[labelled])

    def columns(self, table: Table, logits: np.ndarray) -> dict[str, list]:
        """`label` and `prediction` hold a list a row; a base without a label is predicted all the same."""
        lengths = [len(sequence) for sequence in table.sequences]
        ends = np.cumsum(lengths)

        def split(values: np.ndarray) -> list[list]:
            return [values[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]

        probabilities = self.probabilities(logits)
        names = np.asarray(self.names, dtype=object)
        names_of = dict(zip(self.values, self.names, strict=True))
        written = [[names_of.get(label, label) for label in labels] for labels in table.labels]
        columns = {"label": written, "prediction": split(names[self.predictions(logits)])}
        return columns | {f"probability_{name}": split(probabilities[:, i]) for i, name in enumerate(self.names)}


def problem_of(table: Table, problem_type: str | None, names: list[str] | None = None) -> Problem:
    """
    The problem that a training table poses.

    Args:
        problem_type: one of `finetune_arguments.PROBLEMS`; None: classes, or several labels if there are several
            columns.
        names: names of the classes or columns, in the order of their ids.

    Raises:
        UserError: if the labels do not fit it.
    """
    several = len(table.columns) > 1
    if problem_type is None:
        problem_type = "multi_label_classification" if several else "single_label_classification"
        if not several and _are_measurements(table):
            raise UserError(
                f"{table.path}: the labels are numbers with decimals; say --problem_type regression, or "
                "single_label_classification if each is a class."
            )
    if several and problem_type in ("single_label_classification", "base_classification"):
        raise UserError(
            f"{table.path}: {problem_type} takes one label column, but there are {', '.join(table.columns)}; "
            "choose one with --label_columns."
        )
    names = tuple(names or ())
    if problem_type == "multi_label_classification":
        return MultiLabel(table.columns, names)
    if problem_type == "regression":
        return Regression(table.columns, names)
    if problem_type == "base_classification":
        return Bases(_classes(table, per_base_names), names)
    return Problem(_classes(table, lambda table: class_names(cells[0] for cells in table.labels)), names)


def _classes(table: Table, names_of: Callable[[Table], list[str]]) -> tuple[str, ...]:
    try:
        return tuple(names_of(table))
    except UserError as error:
        raise UserError(f"{table.path}: {error}") from error


def _are_measurements(table: Table) -> bool:
    """Whether labels are numbers and most are no integers."""
    try:
        values = np.array([float(cells[0]) for cells in table.labels])
    except ValueError:
        return False
    return bool(np.mean(values != np.round(values)) > 0.5)
