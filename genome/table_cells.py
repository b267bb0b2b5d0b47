"""What may stand in a cell of a fine-tuning table, from text or from typed data: a sequence, a label, labels of bases.

Errors are a `UserError` without place; the caller adds where the cell stands.
"""

import re

from ..errors import UserError
from ..tokenizer.policy import PolicyReport, TextPolicy, normalise

SEPARATORS = re.compile(r"[,;\s]")


def read_sequence(cell, what: str, policy: TextPolicy, report: PolicyReport | None = None) -> str:
    """The normalised sequence; `what` is its name in messages."""
    if not isinstance(cell, str | None):
        raise UserError(f"the {what} is {str(cell)[:60]!r}, which is no text; write its bases as text")
    try:
        return normalise((cell or "").strip(), policy, report)
    except UserError as error:
        raise UserError(f"the {what} {error}") from error


def read_label(cell, column: str) -> str:
    """The label of a row as text: integers without a decimal point, true and false as 1 and 0."""
    if isinstance(cell, list | dict):
        raise UserError(
            f"the column {column} holds {'a list' if isinstance(cell, list) else 'an object'} where one label is "
            "expected; give one label a row, or ask for labels of bases"
        )
    text = _text(cell)
    if not text:
        raise UserError(f"the label{'' if column == 'label' else ' ' + column} is empty; fill it in or remove the row")
    return text


def base_labels(cell, bases: int) -> list[str]:
    """
    The labels of a sequence of so many bases, one a base, empty where a list has null.

    Text without separators has one character a base; otherwise commas or semicolons part the labels, or white space.
    """
    if isinstance(cell, list):
        if any(isinstance(x, list | dict) for x in cell):
            raise UserError("a label of a base is a list or an object; give one value a base")
        texts = {x: _text(x) for x in set(cell)}  # one string a label, not one a base
        labels = [texts[x] for x in cell]
    else:
        text = _text(cell)
        if not SEPARATORS.search(text):
            labels = list(text) if len(text) == bases else [text]
        elif "," in text or ";" in text:
            labels = [label.strip() for label in re.split("[,;]", text)]
        else:
            labels = text.split()
    if not any(labels):
        raise UserError("the label is empty; fill it in or remove the row")
    if len(labels) != bases:
        given = f"{len(labels)} labels" if len(labels) > 1 else f"the label {labels[0][:40]!r}"
        raise UserError(f"{given} where the sequence has {bases} bases; give one label a base")
    return labels


def _text(value) -> str:
    """A label as text; empty for null and for NaN, which is null after a detour through pandas."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
