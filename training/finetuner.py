"""`transformers.Trainer` for fine-tuning: our loss, evaluation that keeps logits alone, a watch for dead runs."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import Trainer

from .examples import Collator, Examples
from .metrics import greater_is_better
from .problems import IGNORE, Problem

# Predictions of a regression that differ by less than this share of the targets' spread are all the same.
FLAT = 1e-3
# As are classes of all rows, if none of their probabilities differs by more.
FLAT_PROBABILITIES = 0.05


class DeadRun(Exception):
    """A run whose predictions stay all the same: the network has not left the plateau it started on."""


class FineTuner(Trainer):
    """
    Args:
        problem: what the labels mean.
        class_weights: (classes,) or None, of the loss.
        to_rows: the table, logits of a batch and its rows' numbers -> one array a row, of labels of bases.
        plateau_patience: evaluations in a row with all predictions the same that make a run dead; None never does.

    `evaluate` scores the development table. DeadRun ends training when it is dead.
    """

    def __init__(
        self,
        *,
        problem: Problem,
        class_weights: np.ndarray | None = None,
        to_rows: Callable[[Examples, np.ndarray, list[int]], list[np.ndarray]] | None = None,
        plateau_patience: int | None = None,
        **kwargs,
    ):
        self.problem, self.to_rows, self.plateau_patience = problem, to_rows, plateau_patience
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        super().__init__(compute_loss_func=self._loss, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is ours, so the model is not told

    def _loss(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.flatten()[0]  # the same number for each GPU of DataParallel
        loss = weighted_loss(logits, labels, self.problem.kind, self.class_weights, num_items_in_batch)
        if self.args.n_gpu > 1 and num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The Trainer multiplies what it takes for one GPU's share; with DataParallel this is the whole batch's.
            loss = loss / self.args.n_gpu
        return loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss and scores on a table, logged and given to the callbacks like the Trainer's own."""
        examples = eval_dataset if isinstance(eval_dataset, Examples) else self.eval_dataset
        logits, loss = self.logits_and_loss(examples)
        targets = flat_targets(examples)
        scores = self.problem.score(*self.problem.score_arrays(logits, targets))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **scores}.items()}
        metrics[f"{metric_key_prefix}_flat"] = float(is_flat(self.problem, logits, targets))
        # A score that is not defined, or not finite, chooses no checkpoint.
        worst = {name: float("-inf") if greater_is_better(name) else float("inf") for name in metrics}
        metrics = {n: v if v is not None and np.isfinite(v) else worst[n] for n, v in metrics.items()}
        self.log({name: value for name, value in metrics.items() if np.isfinite(value)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._look_for_plateau()
        return metrics

    def logits_and_loss(self, examples: Examples) -> tuple[np.ndarray, float]:
        """
        Logits of every row in the table's order, in all processes: (rows, outputs), or (bases, classes) of all rows
        one after another, the mean over both strands if `examples` holds them; and the mean loss over rows.

        Rows are taken by length, so that few pads are computed, and nothing of the model but its logits is kept.
        """
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]), reverse=True)
        size = self.args.per_device_eval_batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        mine = batches[self.args.process_index :: self.args.world_size]
        collate, found = Collator(self.processing_class), []
        model = self.model
        if model.device != self.args.device:
            model.to(self.args.device)
        was_training = model.training
        model.eval()
        for rows in mine:
            batch = collate([examples[i] for i in rows]).items()
            batch = {key: value.to(self.args.device) for key, value in batch}
            labels = batch.pop("labels")
            with torch.inference_mode(), self.accelerator.autocast():
                outputs = model(**batch)
            logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()
            losses = row_losses(logits, labels, self.problem.kind, self.class_weights)
            values = logits.cpu().numpy()
            values = list(values) if self.to_rows is None else self.to_rows(examples, values, rows)
            found += zip(rows, values, losses.cpu().tolist(), strict=True)
        model.train(was_training)
        if self.args.world_size > 1:
            found = gather_object(found)
        found.sort(key=lambda row: row[0])
        values = [value for _, value, _ in found]
        loss = float(np.mean([loss for _, _, loss in found]))
        if examples.other_strand is not None:
            half = len(values) // 2
            values = [(one + other) / 2 for one, other in zip(values[:half], values[half:], strict=True)]
        return np.stack(values) if self.to_rows is None else np.concatenate(values), loss

    def _look_for_plateau(self):
        if self.plateau_patience is None:
            return
        flat = [entry["eval_flat"] for entry in self.state.log_history if "eval_flat" in entry]
        last = flat[-self.plateau_patience :]
        if len(last) == self.plateau_patience and all(last):
            raise DeadRun(f"all predictions were the same in {self.plateau_patience} evaluations in a row")

    def train(self, *args, **kwargs):
        """Also raises DeadRun if not one evaluation of the whole run saw predictions that differ."""
        result = super().train(*args, **kwargs)
        flat = [entry["eval_flat"] for entry in self.state.log_history if "eval_flat" in entry]
        if self.plateau_patience is not None and flat and all(flat):
            raise DeadRun("all predictions were the same to the end")
        return result


def flat_targets(examples: Examples) -> np.ndarray:
    """(rows,) or (rows, columns); of labels of bases (bases,), those of all rows one after another."""
    if examples.base_labels is not None:
        return np.concatenate([np.asarray(labels) for labels in examples.base_labels])
    return np.asarray(examples.targets)


def rows_of_labelled_bases(examples: Examples) -> np.ndarray | None:
    """
    (bases,) number of the row that each labelled base stands in, in their order; None if labels are those of rows.

    Bases of one sequence are no independent samples, so they are drawn together where scores are resampled.
    """
    if examples.base_labels is None:
        return None
    rows = np.repeat(np.arange(len(examples.base_labels)), [len(labels) for labels in examples.base_labels])
    return rows[flat_targets(examples) != IGNORE]


def is_flat(problem: Problem, logits: np.ndarray, targets: np.ndarray) -> bool:
    """
    Whether the network says the same of all rows, though they differ: one class each time and about as probable, or
    about the same number. So does one whose outputs are no numbers any more.
    """
    if not np.isfinite(logits).all():
        return True
    if len(logits) < 2 or (targets == targets[:1]).all():
        return False
    predictions = problem.predictions(logits)
    if problem.kind == "regression":
        return bool(np.ptp(predictions, axis=0).max() <= FLAT * targets.std(axis=0).max())
    same = (predictions == predictions[:1]).all()
    return bool(same and np.ptp(problem.probabilities(logits), axis=0).max() < FLAT_PROBABILITIES)


def weighted_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    kind: str,
    weights: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    The loss of `bert_layers.losses`, with classes weighted.

    Args:
        logits: (batch, outputs), or (batch, length, bases a token, classes).
        labels: as `losses.sequence_loss` takes them, or (batch, length, bases a token); -100 is ignored.
        kind: of the problem.
        weights: (classes,), of each class; of several labels, of each one's presence.
        num_items_in_batch: divide by this instead of by the labels at hand.

    Returns:
        A scalar. It is divided by the labels and not by their weights, so that it does not depend on how rows are
        dealt out to batches.
    """
    losses, counted = _losses(logits, labels, kind, weights)
    return losses.sum() / (counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def row_losses(logits: torch.Tensor, labels: torch.Tensor, kind: str, weights: torch.Tensor | None) -> torch.Tensor:
    """(batch,): the loss of each row alone."""
    losses, counted = _losses(logits, labels, kind, weights)
    return losses.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)


def _losses(logits, labels, kind, weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every label its loss, and whether it counts: both (batch, labels a row...)."""
    logits, labels = logits.float(), labels.to(logits.device)
    weights = None if weights is None else weights.to(logits.device)
    if kind in ("multi_label_classification", "regression"):
        labels = labels.reshape(logits.shape).float()
        if kind == "regression":
            losses = F.mse_loss(logits, labels, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
        return losses, torch.ones_like(losses, dtype=torch.bool)
    labels = labels.reshape(len(logits), -1)
    classes = logits.reshape(-1, logits.shape[-1])
    losses = F.cross_entropy(classes, labels.flatten(), weight=weights, ignore_index=IGNORE, reduction="none")
    return losses.view(labels.shape), labels != IGNORE
