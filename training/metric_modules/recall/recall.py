"""Recall: of the rows of a class, the share predicted as it, by scikit-learn.

An `evaluate` module of one file; it loads from its folder, without a network:

    evaluate.load("training/metric_modules/recall").compute(predictions=[0, 1], references=[1, 1])
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import recall_score

INPUTS = """
Args:
    predictions, references: class ids; under the configuration "multilabel" a list of 0 and 1 a row.
    labels: classes to take into the average, and their order; by default all that occur.
    pos_label: the class that is scored if `average` is "binary".
    average: "binary", "micro", "macro", "weighted", "samples" (multilabel only), or None for one value a class.
    sample_weight: one weight a row.
    zero_division: the value of a class without a reference; 0 by default.

Returns:
    `{"recall": value}`, a list of values if `average` is None.
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


class Recall(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        if self.config_name == "multilabel":
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.recall_score.html"],
        )

    @staticmethod
    def _compute(
        predictions,
        references,
        labels=None,
        pos_label=1,
        average="binary",
        sample_weight=None,
        zero_division=0.0,
    ):
        value = recall_score(
            np.asarray(references),  # rows of several labels come as lists, which scikit-learn refuses
            np.asarray(predictions),
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        return {"recall": value.tolist() if average is None else float(value)}
