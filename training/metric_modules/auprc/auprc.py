"""AUPRC: average precision, by scikit-learn. No interpolation; chance is the share of positives.

An `evaluate` module of one file; it loads from its folder, without a network:

    evaluate.load("training/metric_modules/auprc").compute(prediction_scores=[0.2, 0.7], references=[0, 1])
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score

INPUTS = """
Args:
    prediction_scores: one score a row for the positive class; under the configurations "multiclass" and "multilabel" a
        list a row, with one score a class.
    references: 0 and 1; "multiclass": class ids, that is places in the list; "multilabel": a list of 0 and 1 a row.
    average: "macro", the mean over classes, each against all others; or None for one value a class.
    sample_weight: one weight a row.

Returns:
    `{"auprc": value}`. A class of which all rows or no row are positive has no value, nor has one with a score that is
    not finite: it is left out of the mean, and the value is None if no class is left.
"""
CITATION = """\
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in Python},
  author = {Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and Grisel, O. and others},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}
"""


class Auprc(evaluate.Metric):
    def _info(self):
        score, label = datasets.Value("float64"), datasets.Value("int64")
        if self.config_name in ("multiclass", "multilabel"):
            score = datasets.Sequence(score)
        if self.config_name == "multilabel":
            label = datasets.Sequence(label)
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"prediction_scores": score, "references": label}),
            reference_urls=[
                "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.average_precision_score.html"
            ],
        )

    @staticmethod
    def _compute(prediction_scores, references, average="macro", sample_weight=None):
        scores, labels = np.asarray(prediction_scores), np.asarray(references)
        if scores.ndim == 1:
            scores, labels = scores[:, None], labels[:, None]
        elif labels.ndim == 1:
            labels = labels[:, None] == np.arange(scores.shape[1])
        values = [column_score(*column, sample_weight) for column in zip(labels.T, scores.T, strict=True)]
        if average is None:
            return {"auprc": values}
        defined = [value for value in values if value is not None]
        return {"auprc": float(np.mean(defined)) if defined else None}


def column_score(labels, scores, sample_weight):
    if len(np.unique(labels)) < 2 or not np.isfinite(scores).all():
        return None
    return float(average_precision_score(labels, scores, sample_weight=sample_weight))
