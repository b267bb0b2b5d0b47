"""Which rows of tokens a network reads together, and how they become its input."""

from collections.abc import Iterator

import numpy as np
import torch

# Pads included; a batch has no more unless one row has. More is slower on a CPU, whose caches it leaves (docs/log.md).
BATCH_TOKENS = {"cpu": 4_096, "cuda": 32_768}


def default_batch_tokens(device) -> int:
    """Tokens of a batch that suit a device."""
    return BATCH_TOKENS["cpu" if torch.device(device).type == "cpu" else "cuda"]


def batches(lengths, budget: int, most: int | None = None, mixed: bool = True) -> Iterator[np.ndarray]:
    """
    Rows in batches of like length, the longest first.

    Args:
        lengths: tokens of each row.
        budget: tokens of a batch, pads included.
        most: rows of a batch.
        mixed: a batch may have rows of several lengths; else, for networks that take no mask, it needs no pads.
    """
    lengths = np.asarray(lengths)
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end = start + max(1, budget // max(longest, 1))
        if most is not None:
            end = min(end, start + most)
        if not mixed:
            end = min(end, start + int((lengths[order[start:]] == longest).sum()))
        yield order[start:end]
        start = end


def to_inputs(columns: dict[str, list], tokenizer, device) -> dict[str, torch.Tensor]:
    """
    Columns of rows of integers -> (rows, longest) int64 tensors, padded on the tokenizer's side.

    Args:
        columns: `input_ids` and whatever else the model takes, one row of integers a sequence.
    """
    pads = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    at_left, inputs = tokenizer.padding_side == "left", {}
    for name, rows in columns.items():
        longest = max(len(row) for row in rows)
        table = np.full((len(rows), longest), pads[name], dtype=np.int64)
        for i, row in enumerate(rows):
            table[i, slice(longest - len(row), None) if at_left else slice(len(row))] = row
        inputs[name] = torch.from_numpy(table).to(device)
    return inputs
