"""Held-out sequence for `bench length`: long stretches of tokens, masked once, cut into pieces of each length.

    stretches = read_stretches(sources, tokenizer, tokens=8190, per_group=8, seed=0)
    masked = mask_stretches(stretches, tokenizer, probability=0.15, seed=0)
    held_out = cut(masked, length=128, tokenizer)      # rows for `training.evaluation.score_held_out`

Whatever the length, the same tokens are masked and scored; a piece's length decides only how much stands around them.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..bert_layers.losses import IGNORE_INDEX
from ..errors import UserError
from ..fasta import find_fasta_files, read_fasta
from ..tokenizer.policy import TextPolicy
from ..training.corpus_sources import Source, find_sources, scan
from ..training.corpus_stream import Corpus
from ..training.corpus_windows import token_bases
from ..training.evaluation import HeldOut
from ..training.masking import MaskingPolicy, mask_tokens

# Bases tokenised for each token that a stretch needs: byte pairs of DNA are about five long, of repeats a little more.
BASES_PER_TOKEN = 7
# A block with fewer is not tried. At the end of a record it may well do with less than the above.
FEWEST_BASES_PER_TOKEN = 4
SPARE = 4  # blocks kept for each stretch wanted, for those that turn out to have too few tokens


@dataclass
class Stretch:
    """`ids` (tokens,) int64, contiguous bases without N from the 0-based place `start` of a record."""

    group: str
    species: str
    accession: str
    start: int
    ids: np.ndarray


@dataclass
class MaskedStretches:
    """
    Attributes:
        inputs, labels: (stretches, tokens) int64, as `masking.mask_tokens` gives them; every chosen token is [MASK].
        token_bases: (vocabulary,) float64, bases of each token.
    """

    inputs: np.ndarray
    labels: np.ndarray
    token_bases: np.ndarray


def held_out_sources(corpus: Corpus, inputs: list[str] | None) -> list[Source]:
    """
    The files with held-out records that a corpus names, and these records alone.

    Args:
        inputs: where the files are now, found by their names; where the manifest says if None.

    Raises:
        UserError: if nothing is held out, or a file is missing or is not the one that the corpus was built from.
    """
    here = {path.name: path for path in find_fasta_files(inputs)} if inputs else {}
    sources = []
    for source in map(Source.from_dict, corpus.manifest["sources"]):
        source.records = [record for record in source.records if record.split == "validation"]
        if not source.records:
            continue
        path = here.get(Path(source.path).name) if inputs else Path(source.path)
        if path is None or not path.is_file():
            raise UserError(
                f"{source.path}: the corpus {corpus.name} holds out records of this file, which is not there; name "
                "the folder it is in now with --input."
            )
        source.path = str(path)
        if scan(source).sha256 != source.sha256:
            raise UserError(f"{path}: is not the file that {corpus.name} was built from, its checksum is another.")
        sources.append(source)
    if not sources:
        raise UserError(f"{corpus.name}: holds no record out; give FASTA files that no model saw with --input alone.")
    return sources


def all_of(inputs: list[str]) -> list[Source]:
    """FASTA files of which every record counts as held out; a group is a species, which a file's name gives."""
    return [scan(source) for source in find_sources(inputs)]


def read_stretches(sources: list[Source], tokenizer, tokens: int, per_group: int, seed: int) -> list[Stretch]:
    """
    Draw stretches from the `records` of each source, anywhere in them, no two of which overlap.

    Args:
        tokens: tokens of a stretch; records that are shorter give none.
        per_group: stretches of each group at most.

    Returns:
        Sorted by group; of a group in the order they were drawn.

    Raises:
        UserError: if no record is long enough.
    """
    groups = defaultdict(list)
    for source in sources:
        groups[source.group].append(source)
    stretches = []
    for number, (group, members) in enumerate(sorted(groups.items())):
        draw = np.random.default_rng([seed, number])
        # The blocks with the smallest of some random numbers, so that only these are ever in memory.
        blocks = ((draw.random(), *block) for source in members for block in _blocks(source, tokens))
        found = 0
        for _, source, accession, start, text in heapq.nsmallest(
            SPARE * per_group, blocks, key=lambda block: block[0]
        ):
            [encoding] = tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)
            if found < per_group and len(encoding.ids) > tokens:  # of the last one the block's end may have cut some
                stretches.append(Stretch(group, source.species, accession, start, np.array(encoding.ids[:tokens])))
                found += 1
    if not stretches:
        raise UserError(
            f"no held-out record has {tokens:,} tokens without an N in it, about {5 * tokens:,} bases; give longer "
            "sequence or smaller --lengths."
        )
    return stretches


def _blocks(source: Source, tokens: int) -> Iterator[tuple[Source, str, int, str]]:
    wanted = {record.accession for record in source.records}
    for accession, sequence in read_fasta(source.path):
        if accession not in wanted:
            continue
        sequence = sequence.translate(TextPolicy().table()).upper()
        for run in re.finditer("[ACGT]+", sequence):
            for start in range(run.start(), run.end(), BASES_PER_TOKEN * tokens):
                text = sequence[start : min(start + BASES_PER_TOKEN * tokens, run.end())]
                if len(text) >= FEWEST_BASES_PER_TOKEN * tokens:
                    yield source, accession, start, text


def mask_stretches(stretches: list[Stretch], tokenizer, probability: float, seed: int) -> MaskedStretches:
    """Draw the tokens to predict; all become [MASK], as in `training.evaluation`."""
    ids = np.stack([stretch.ids for stretch in stretches]).astype(np.int64)
    draw = np.random.default_rng(seed)
    inputs, labels = mask_tokens(ids, MaskingPolicy.of(tokenizer, probability), draw, always_mask=True)
    return MaskedStretches(inputs, labels, token_bases(tokenizer).astype(np.float64))


def cut(masked: MaskedStretches, length: int, tokenizer, vocab_size: int) -> HeldOut:
    """
    Consecutive pieces of `length` tokens with [CLS] and [SEP], each stretch by itself.

    Where they do not go evenly into a stretch, the last one is moved back so that it ends with the stretch. What it
    shares with the one before is scored there alone: every masked token counts once, in a piece of full length.

    Args:
        vocab_size: size of the model's output.

    Returns:
        Pieces in order, `group_ids` the number of the stretch of each.
    """
    count, tokens = masked.inputs.shape
    inner = length - 2
    starts = np.minimum(np.arange(0, tokens, inner), tokens - inner)
    places = starts[:, None] + np.arange(inner)  # (pieces, inner)
    inputs, labels = masked.inputs[:, places], masked.labels[:, places]
    if len(starts) > 1:
        labels[:, -1, : starts[-2] + inner - starts[-1]] = IGNORE_INDEX

    def framed(x: np.ndarray, first: int, last: int) -> torch.Tensor:
        ends = ((0, 0), (0, 0), (1, 1))
        values = ((0, 0), (0, 0), (first, last))
        return torch.from_numpy(np.pad(x, ends, constant_values=values).reshape(-1, length))

    bases = np.zeros(max(vocab_size, len(masked.token_bases)))
    bases[: len(masked.token_bases)] = masked.token_bases
    return HeldOut(
        framed(inputs, tokenizer.cls_token_id, tokenizer.sep_token_id),
        framed(labels, IGNORE_INDEX, IGNORE_INDEX),
        torch.arange(count).repeat_interleave(len(starts)),
        [str(number) for number in range(count)],
        torch.from_numpy(bases),
    )
