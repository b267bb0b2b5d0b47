"""A checkpoint's own queries, keys and values on real sequences: random ones cannot say how much may be skipped.

The records of the input are joined end to end, tokenised and cut into windows of each length, [CLS] and [SEP]
included. Every layer's packed projection is then one problem.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import UserError
from ..loading import load_model
from ..precision import DTYPES
from .problems import Problem

TABLES = (".csv", ".tsv")
# Bases tokenised at a time; a genome's record can be a whole chromosome.
PIECE = 100_000


class Checkpoint:
    """
    A model and the tokens to run it on.

    Raises:
        UserError: if the model, its tokenizer or the input cannot be used, or the input is shorter than a length.
    """

    def __init__(self, name: str, path: Path, lengths: list[int], tokens: int, dtype: str, device: torch.device):
        from ..tokenizer.files import load_tokenizer

        if min(lengths) < 3:
            raise UserError("--lengths must be at least 3 with --model: [CLS], a token and [SEP].")
        model = load_model("DNABert2Model", name, dtype=DTYPES[dtype], add_pooling_layer=False)
        self.model = model.to(device).eval()
        tokenizer = load_tokenizer(name)
        if len(tokenizer) > self.model.config.vocab_size:
            raise UserError(f"{name}: its tokenizer has more ids than the model's {self.model.config.vocab_size}.")
        self.ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        self.tokens = tokens
        self.ids = _read_ids(path, tokenizer, wanted=max(tokens, *lengths))
        if len(self.ids) < max(lengths) - 2:
            raise UserError(
                f"{path}: holds {len(self.ids):,} tokens, and one sequence of --lengths {max(lengths)} needs "
                f"{max(lengths) - 2:,}; give more sequence or smaller lengths."
            )

    @property
    def heads(self) -> int:
        return self.model.config.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.model.config.hidden_size // self.heads

    def problems(self, length: int) -> Iterator[Problem]:
        """One problem a layer: as many windows of `length` tokens as the total and the input allow, at least one."""
        inner = length - 2
        count = min(max(1, self.tokens // length), len(self.ids) // inner)
        windows = torch.tensor(self.ids[: count * inner]).view(count, inner)
        first, last = (torch.full((count, 1), end) for end in self.ends)
        input_ids = torch.cat([first, windows, last], dim=1).to(self.model.device)
        for layer, projected in enumerate(self._projections(input_ids)):
            qkv = projected.reshape(count * length, 3, self.heads, self.head_dim)
            yield Problem(f"layer {layer}", "equal", length, [length] * count, qkv, self.model.alibi().clone())

    @torch.no_grad()
    def _projections(self, input_ids: torch.Tensor) -> list[torch.Tensor]:
        captured = []
        hooks = [
            layer.attention.self.Wqkv.register_forward_hook(lambda *call: captured.append(call[-1].detach()))
            for layer in self.model.encoder.layer
        ]
        try:
            self.model(input_ids, attention_mask=torch.ones_like(input_ids))
        finally:
            for hook in hooks:
                hook.remove()
        return captured


def _read_ids(path: Path, tokenizer, wanted: int) -> list[int]:
    ids = []
    for text in _read_sequences(path):
        for start in range(0, len(text), PIECE):
            ids += tokenizer(text[start : start + PIECE], add_special_tokens=False)["input_ids"]
            if len(ids) >= wanted:
                return ids[:wanted]
    return ids


def _read_sequences(path: Path) -> Iterator[str]:
    from ..tokenizer.policy import TextPolicy, normalise

    if path.suffix in TABLES:
        from ..training.tables import read_table

        if not path.is_file():
            raise UserError(f"{path}: no such file.")
        yield from read_table(path, TextPolicy()).sequences
        return
    try:
        from ..fasta import read_fasta
    except ImportError as error:
        raise UserError(
            f"{path}: reading FASTA needs pysam; give a .csv with the columns sequence and label."
        ) from error
    for name, sequence in read_fasta(path):
        try:
            yield normalise(sequence, TextPolicy())
        except UserError as error:
            raise UserError(f"{path}: the record {name} {error}.") from error
