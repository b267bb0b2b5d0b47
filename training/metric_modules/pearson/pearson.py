"""Pearson correlation of predictions and references, by scipy.

An `evaluate` module of one file; it loads from its folder, without a network:

    evaluate.load("training/metric_modules/pearson").compute(predictions=[0.1, 2.0, 3.5], references=[0, 1, 2])
"""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr

INPUTS = """
Args:
    predictions, references: one number a row.

Returns:
    `{"pearson": value}`. It has no value, and is None, if there are fewer than two rows, if all predictions or all
    references are equal, or if one of them is not finite.
"""
CITATION = """\
@article{scipy,
  title = {{SciPy} 1.0: Fundamental Algorithms for Scientific Computing in Python},
  author = {Virtanen, Pauli and Gommers, Ralf and Oliphant, Travis E. and Haberland, Matt and Reddy, Tyler and others},
  journal = {Nature Methods},
  volume = {17},
  pages = {261--272},
  year = {2020}
}
"""


class Pearson(evaluate.Metric):
    def _info(self):
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"],
        )

    @staticmethod
    def _compute(predictions, references):
        rows = np.asarray([predictions, references], dtype=np.float64)
        if rows.shape[1] < 2 or not np.isfinite(rows).all() or (rows == rows[:, :1]).all(axis=1).any():
            return {"pearson": None}
        value = float(pearsonr(*rows).statistic)
        return {"pearson": value if np.isfinite(value) else None}
