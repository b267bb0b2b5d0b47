"""Losses of the heads, in float32. None of them writes to the configuration."""

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100


def token_loss(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
    """
    Mean cross-entropy over the tokens whose label is not -100; every other id counts, id 0 too.

    Args:
        logits: (batch, length, classes).
        labels: (batch, length) int64.
        num_items_in_batch: divide by this instead of by the labels at hand, so that gradient accumulation over unequal
            batches gives the loss of the whole (the Trainer passes it).

    Returns:
        A scalar; 0 if there is no label, where a plain mean would be NaN.
    """
    logits, labels = logits.float().flatten(0, -2), labels.flatten().to(logits.device)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORE_INDEX).sum().clamp(min=1)
    return total / num_items_in_batch


def problem_type_of(labels: torch.Tensor, num_labels: int) -> str:
    """The problem a `config.problem_type` of None stands for: one output is regression, float labels multi-label."""
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def sequence_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None,
    num_items_in_batch: torch.Tensor | int | None = None,
):
    """
    Loss of a sequence classifier.

    Args:
        logits: (batch, num_labels).
        labels: (batch,) ids for a single label, (batch, num_labels) of 0 and 1 for several, (batch,) or
            (batch, num_labels) floats for regression.
        problem_type: "single_label_classification", "multi_label_classification", "regression", or None to tell from
            the labels.

    Raises:
        ValueError: if the problem is unknown or the labels do not fit it.
    """
    num_labels = logits.shape[-1]
    problem_type = problem_type or problem_type_of(labels, num_labels)
    logits, labels = logits.float(), labels.to(logits.device)
    if problem_type == "single_label_classification":
        return token_loss(logits[:, None], labels.reshape(-1, 1), num_items_in_batch)
    if problem_type not in ("multi_label_classification", "regression"):
        raise ValueError(
            f"problem_type={problem_type!r} is unknown: choose single_label_classification, "
            "multi_label_classification or regression."
        )
    if labels.numel() != logits.numel():
        raise ValueError(
            f"{problem_type} takes a label for each of {num_labels} outputs: labels of shape {tuple(labels.shape)} do "
            f"not "
            f"fit logits of shape {tuple(logits.shape)}."
        )
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    total = loss(logits, labels.reshape(logits.shape).float(), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
