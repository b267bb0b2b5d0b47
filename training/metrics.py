"""Scores of a classifier, by scikit-learn."""

import numpy as np


def classification_scores(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """
    Args:
        labels, predictions: (rows,) class ids.

    Returns:
        `matthews_correlation` (GUE's metric), `f1` (macro average, as the published scripts report it), `accuracy`.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
        "f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(labels, predictions)),
    }
