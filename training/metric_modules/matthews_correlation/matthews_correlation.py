"""Matthews correlation of classes and predictions, two or more classes, by scikit-learn: GUE's metric.

An `evaluate` module of one file; it loads from its folder, without a network:

    evaluate.load("training/metric_modules/matthews_correlation").compute(predictions=[0, 1], references=[1, 1])
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import matthews_corrcoef

INPUTS = """
Args:
    predictions, references: class ids; under the configuration "multilabel" a list of 0 and 1 a row.
    average: multilabel only. By default all decisions count as one binary classification; "macro" is the mean over
        labels, None gives one value a label.
    sample_weight: one weight a row.

Returns:
    `{"matthews_correlation": value}`; 0 if all predictions or all references are equal.
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


class MatthewsCorrelation(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        if self.config_name == "multilabel":
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=[
                "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html"
            ],
        )

    @staticmethod
    def _compute(predictions, references, average="micro", sample_weight=None):
        predicted, labels = np.asarray(predictions), np.asarray(references)
        if predicted.ndim == 2 and average != "micro":
            values = [correlation(*column, sample_weight) for column in zip(labels.T, predicted.T, strict=True)]
            return {"matthews_correlation": float(np.mean(values)) if average == "macro" else values}
        if predicted.ndim == 2 and sample_weight is not None:
            sample_weight = np.repeat(sample_weight, predicted.shape[1])
        return {"matthews_correlation": correlation(labels.ravel(), predicted.ravel(), sample_weight)}


def correlation(labels, predicted, sample_weight):
    if len(np.unique(labels)) < 2 or len(np.unique(predicted)) < 2:
        return 0.0  # scikit-learn's value too, but it may warn
    return float(matthews_corrcoef(labels, predicted, sample_weight=sample_weight))
