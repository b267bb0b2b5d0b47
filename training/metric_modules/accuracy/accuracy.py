"""Accuracy: the share of rows whose prediction is right, by scikit-learn. For several labels a row, all must be.

An `evaluate` module of one file; it loads from its folder, without a network:

    evaluate.load("training/metric_modules/accuracy").compute(predictions=[0, 1], references=[1, 1])
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score

INPUTS = """
Args:
    predictions, references: class ids; under the configuration "multilabel" a list of 0 and 1 a row.
    normalize: False counts the rows that are right, instead of their share.
    sample_weight: one weight a row.

Returns:
    `{"accuracy": value}`
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


class Accuracy(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        if self.config_name == "multilabel":
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"],
        )

    @staticmethod
    def _compute(predictions, references, normalize=True, sample_weight=None):
        # Rows of several labels come as lists, which scikit-learn refuses.
        labels, predicted = np.asarray(references), np.asarray(predictions)
        value = accuracy_score(labels, predicted, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(value)}
