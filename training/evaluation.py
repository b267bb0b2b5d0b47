"""Masked-LM evaluation by group: loss, accuracy, and bits per base, which compares across tokenizers.

The masks are drawn once, from a fixed seed; every chosen token becomes [MASK], since one that stays would tell its own
name. A base's cost is its token's, shared: bits per base = sum of -log2 p(token) / sum of the tokens' bases. Uniform
bases cost 2 bits. p(token) also pays for where the token ends, which a model of single bases does not.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from ..bert_layers.losses import IGNORE_INDEX
from ..errors import UserError
from .corpus_stream import Corpus, pad_windows
from .corpus_windows import token_bases
from .masking import MaskingPolicy, mask_tokens

PROBABILITY = 0.15  # of a token to be masked, whatever training masks
SEED = 20_240_507  # of the masks; fixed, so that any two runs are scored on the same tokens


@dataclass
class HeldOut(Dataset):
    """
    Held-out windows, masked once and for all.

    Attributes:
        inputs, labels: (sequences, max_length) int64.
        group_ids: (sequences,) int64, places in `groups`.
        token_bases: (vocabulary,) float64, bases of each token.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    group_ids: torch.Tensor
    groups: list[str]
    token_bases: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index):
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}


def read_held_out(corpus: Corpus, per_group: int, split: str = "validation") -> dict[str, list[dict]]:
    """The first `per_group` rows of each group, as dictionaries; the shards were shuffled when they were built."""
    wanted = {
        name: min(per_group, counts["rows"])
        for name, counts in corpus.manifest["splits"].get(split, {}).get("groups", {}).items()
    }
    rows = defaultdict(list)
    for shard in corpus.shards(split):
        for table in corpus.rows(shard["file"]):
            columns = {name: table[name].to_pylist() for name in table.column_names if name != "input_ids"}
            for i, group in enumerate(columns["group"]):
                if len(rows[group]) < wanted[group]:
                    ids = np.asarray(table["input_ids"][i].values)
                    rows[group].append({name: values[i] for name, values in columns.items()} | {"input_ids": ids})
        if all(len(rows[group]) >= count for group, count in wanted.items()):
            break
    return dict(sorted(rows.items()))


def mask_held_out(
    rows: dict[str, list[dict]],
    tokenizer,
    max_length: int,
    probability: float = PROBABILITY,
    vocab_size: int | None = None,
) -> HeldOut:
    """
    Args:
        rows: of each group, each with `input_ids`.
        vocab_size: size of the model's output, if larger than the tokenizer.

    Raises:
        UserError: if there is no row.
    """
    windows = [row["input_ids"] for group in rows.values() for row in group]
    if not windows:
        raise UserError("the corpus holds nothing out, so that there is nothing to evaluate: set --eval_strategy no.")
    ids = pad_windows(windows, tokenizer, max_length)
    draw = np.random.default_rng(SEED)
    inputs, labels = mask_tokens(ids, MaskingPolicy.of(tokenizer, probability), draw, always_mask=True)
    group_ids = np.repeat(np.arange(len(rows)), [len(group) for group in rows.values()])
    bases = np.zeros(max(vocab_size or 0, len(tokenizer)))
    bases[: len(tokenizer)] = token_bases(tokenizer)
    tensors = (torch.from_numpy(x) for x in (inputs, labels, group_ids))
    return HeldOut(*tensors, list(rows), torch.from_numpy(bases))


@dataclass
class Sums:
    """(groups, 4) float64: nats, right guesses, tokens and bases of the masked tokens."""

    groups: list[str]
    values: torch.Tensor = field(default=None)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """
        `loss` (nats a token), `accuracy`, `bits_per_base`, over all and of each group (`vertebrate_loss`).

        A group without a masked token has none. Over all is over all masked tokens, so that groups weigh as they have
        sequences.
        """
        scores = {}
        named = [
            ("", self.values.sum(0)),
            *((f"{_key(g)}_", v) for g, v in zip(self.groups, self.values, strict=True)),
        ]
        for name, (nats, right, tokens, bases) in ((name, v.tolist()) for name, v in named):
            if tokens:
                scores[f"{prefix}{name}loss"] = nats / tokens
                scores[f"{prefix}{name}accuracy"] = right / tokens
                scores[f"{prefix}{name}bits_per_base"] = nats / math.log(2) / bases
        return scores


def _key(group: str) -> str:
    return group.replace(" ", "_")


@torch.no_grad()
def score_held_out(
    model, held_out: HeldOut, batch_size: int, device, rank: int = 0, world_size: int = 1, autocast=None
) -> Sums:
    """
    Run the model over the held-out windows, every process over its share of the batches, and add up.

    Args:
        model: takes `input_ids`, `labels` and `labelled_only`, like `DNABert2ForMaskedLM`.
        autocast: a function that returns a context in which to compute.

    Returns:
        The sums over all processes.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(len(held_out.groups), 4, dtype=torch.float64, device=device)
    batches = range(0, len(held_out), batch_size)
    # All processes make equally many calls, which FSDP needs; what is one too many counts nothing.
    for turn in range(-(-len(batches) // world_size)):
        start = (turn * world_size + rank) * batch_size
        counts = start < len(held_out)
        rows = slice(start, start + batch_size) if counts else slice(0, batch_size)
        inputs, labels = held_out.inputs[rows].to(device), held_out.labels[rows].to(device)
        with autocast() if autocast else torch.autocast(device.type, enabled=False):
            logits = model(input_ids=inputs, labels=labels, labelled_only=True).logits
        is_labelled = labels != IGNORE_INDEX
        targets = labels[is_labelled]
        if not counts or not len(targets):
            continue
        groups = held_out.group_ids[rows].to(device)[:, None].expand_as(labels)[is_labelled]
        nats = F.cross_entropy(logits.float(), targets, reduction="none")
        columns = [nats, logits.argmax(-1) == targets, torch.ones_like(nats), held_out.token_bases.to(device)[targets]]
        sums.index_add_(0, groups, torch.stack([column.double() for column in columns], dim=1))
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    model.train(was_training)
    return Sums(held_out.groups, sums.cpu())
