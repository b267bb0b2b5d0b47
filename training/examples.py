"""Fine-tuning tables as a model's input: token ids, targets, either strand, and what had to be cut."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from ..architectures.encoding import encode
from ..architectures.rows import Architecture
from ..errors import UserError
from ..genome.base_map import gather_base_labels, token_spans
from ..genome.strands import reverse_complement
from ..tokenizer.policy import PolicyReport
from .problems import IGNORE, Problem
from .tables import Table


@dataclass
class Truncation:
    """How long a table's rows are in tokens, and how many had to be cut."""

    rows: int
    longest: int
    cut: int
    limit: int | None

    def describe(self) -> str:
        said = f"{self.rows:,} rows of at most {self.longest:,} tokens"
        if not self.cut:
            return f"{said}, none cut"
        return f"{said}, {self.cut:,} cut to {self.limit:,} ({self.cut / self.rows:.1%})"


class Examples(Dataset):
    """
    Encoded rows of a table, not padded.

    Args:
        rows: what the model takes of each row.
        targets: one a row.
        other_strand: `rows` of the other strand, which then follow the rows, with the same targets.
        augment: makes other rows of the same table; called for each epoch, see `set_epoch`.
        seed: of `augment`.
        base_labels: of labels of bases, each row's; `targets` are then what `gather_base_labels` made of them.
    """

    def __init__(
        self,
        rows: list[dict],
        targets: list,
        *,
        other_strand: list[dict] | None = None,
        augment: Callable[[np.random.Generator], list[dict]] | None = None,
        seed: int = 0,
        base_labels: list[list[int]] | None = None,
    ):
        self.rows, self.targets, self.other_strand = rows, targets, other_strand
        self.augment, self.seed, self.base_labels = augment, seed, base_labels

    def set_epoch(self, epoch: int):
        """Rows of this epoch. Of seed and epoch alone: a run that goes on sees what it would have seen."""
        if self.augment is not None:
            self.rows = self.augment(np.random.default_rng([self.seed, epoch]))

    def __len__(self) -> int:
        return len(self.rows) * (1 if self.other_strand is None else 2)

    def __getitem__(self, i: int) -> dict:
        turn, row = divmod(i, len(self.rows))
        return {**(self.other_strand if turn else self.rows)[row], "labels": self.targets[row]}


class NextEpoch(TrainerCallback):
    """Tells the training table which epoch begins."""

    def __init__(self, examples: Examples):
        self.examples = examples

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A run that goes on in the middle of an epoch is in that epoch.
        self.examples.set_epoch(int((state.epoch or 0) + 1e-6))


def encode_tables(
    tables: dict[str, Table],
    problem: Problem,
    tokenizer,
    architecture: Architecture,
    report: PolicyReport,
    *,
    max_length: int | None,
    allow_truncation: bool,
    bases_per_token: int | None = None,
    token_types: bool = True,
    rc_augment: bool = False,
    rc_average: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Examples], dict[str, Truncation]]:
    """
    `Examples` and the report on truncation of each split.

    Args:
        bases_per_token: of a model for labels of bases, the most bases a token may stand for.
        token_types: False gives both sequences of a pair the same type.
        rc_augment: train on either strand of a row, of a pair both sequences or neither, each epoch anew.
        rc_average: the other tables hold both strands of every row.

    Raises:
        UserError: naming how many rows of each table have more than `max_length` tokens, if they may not be cut.
    """

    def rows_of(sequences: list[str], pairs: list[str] | None, limit: int | None) -> list[dict]:
        columns = encode(tokenizer, sequences, pairs, architecture, limit, limit is not None)
        return _rows(columns, token_types)

    def other_strand(table: Table) -> tuple[list[str], list[str] | None]:
        pairs = None if table.pairs is None else [reverse_complement(s) for s in table.pairs]
        return [reverse_complement(s) for s in table.sequences], pairs

    whole, other = {}, {}
    for split, table in tables.items():
        whole[split] = rows_of(table.sequences, table.pairs, None)
        if rc_augment if split == "train" else rc_average:
            other[split] = rows_of(*other_strand(table), None)
    truncations = {split: _truncation(rows, other.get(split), max_length) for split, rows in whole.items()}
    if not allow_truncation:
        _refuse_truncation(tables, truncations, whole, other)
    examples = {}
    for split, table in tables.items():
        limit = max_length if truncations[split].cut else None
        rows = whole[split] if limit is None else rows_of(table.sequences, table.pairs, limit)
        for row in rows:
            report.count_tokens(row["input_ids"], tokenizer.unk_token_id)
        targets, base_labels = problem.targets(table), None
        if bases_per_token is not None:
            base_labels = targets
            targets = _token_targets(table.sequences, base_labels, tokenizer, bases_per_token)
        if limit is not None and split in other:
            other[split] = rows_of(*other_strand(table), limit)
        both = other.get(split)
        examples[split] = Examples(
            rows,
            targets,
            other_strand=None if split == "train" else both,
            augment=_either(rows, both) if both and split == "train" else None,
            seed=seed,
            base_labels=base_labels,
        )
    return examples, truncations


def _either(rows: list[dict], other: list[dict]) -> Callable[[np.random.Generator], list[dict]]:
    """Each row of one strand or the other, as the generator has it."""

    def augment(generator: np.random.Generator) -> list[dict]:
        turned = generator.integers(0, 2, len(rows))
        return [other[i] if turn else rows[i] for i, turn in enumerate(turned)]

    return augment


def _lengths(rows: list[dict], other: list[dict] | None) -> list[int]:
    """Tokens of each row, of the longer strand where both are read."""
    lengths = [len(row["input_ids"]) for row in rows]
    return lengths if other is None else [max(n, len(row["input_ids"])) for n, row in zip(lengths, other, strict=True)]


def _truncation(rows: list[dict], other: list[dict] | None, limit: int | None) -> Truncation:
    lengths = _lengths(rows, other)
    cut = 0 if limit is None else sum(length > limit for length in lengths)
    return Truncation(len(lengths), max(lengths), cut, limit)


def _refuse_truncation(
    tables: dict[str, Table],
    truncations: dict[str, Truncation],
    rows: dict[str, list[dict]],
    other: dict[str, list[dict]],
):
    cut = {split: found for split, found in truncations.items() if found.cut}
    if not cut:
        return
    split, limit = next(iter(cut)), next(iter(cut.values())).limit
    first = next(i for i, length in enumerate(_lengths(rows[split], other.get(split))) if length > limit)
    counts = ", ".join(f"{found.cut:,} of {found.rows:,} in {name}" for name, found in cut.items())
    longest = max(found.longest for found in cut.values())
    raise UserError(
        f"{tables[split].where(first)}: more than {limit} tokens, as have {counts}, the longest {longest:,}; raise "
        "--max_length if the model can take more, or cut them with --allow_truncation."
    )


def _rows(columns: dict[str, list], token_types: bool) -> list[dict]:
    if not token_types and "token_type_ids" in columns:
        columns = {**columns, "token_type_ids": [[0] * len(ids) for ids in columns["input_ids"]]}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _token_targets(sequences: list[str], targets: list, tokenizer, bases_per_token: int) -> list:
    spans = token_spans(tokenizer, sequences)
    return [
        gather_base_labels(np.asarray(labels), span, bases_per_token, ignore=IGNORE)
        for labels, span in zip(targets, spans, strict=True)
    ]


class Collator:
    """
    Pads rows to the longest of the batch, on the tokenizer's side, and stacks their targets.

    Returns of a list of rows: `input_ids`, `attention_mask` and, where the model takes them, `token_type_ids` (batch,
    length) int64; `labels` (batch,) int64, (batch, columns) float32, or (batch, length, bases a token) int64, -100 at
    pads.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        targets = [row["labels"] for row in rows]
        inputs = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, padding=True, return_tensors="pt"))
        # The tokenizer adds a mask to inputs without one; a model that takes none was given none.
        batch = {key: value for key, value in batch.items() if key in inputs[0]}
        first = np.asarray(targets[0])
        if first.ndim == 2:
            length = batch["input_ids"].shape[1]
            labels = np.full((len(rows), length, first.shape[1]), IGNORE)
            for i, target in enumerate(targets):
                at_left = self.tokenizer.padding_side == "left"
                labels[i, slice(length - len(target), None) if at_left else slice(len(target))] = target
            batch["labels"] = torch.from_numpy(labels)
        else:
            batch["labels"] = torch.from_numpy(np.stack([np.asarray(target) for target in targets]))
        return batch
