"""DNABERT-2, a genome language model. Heavy imports wait for first use, so that `dnabert2 --help` answers at once."""

import importlib

__version__ = "0.1.0"

_HOME = {
    "DNABert2Config": ".configuration_dnabert2",
    "DNABert2Embedder": ".inference.embedder",
    "DNABert2ForMaskedLM": ".modeling_dnabert2",
    "DNABert2ForSequenceClassification": ".modeling_dnabert2",
    "DNABert2ForTokenClassification": ".modeling_dnabert2",
    "DNABert2Model": ".modeling_dnabert2",
    "register_auto_classes": ".registration",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
