"""How likely a masked language model of byte pairs finds bases: over all ways of writing them as tokens.

    texts = [left + base + right for base in "ACGT"]
    (scores,) = AlleleLikelihood(load_masked_lm("mini")).score([texts])      # (4,) natural logarithms

Alleles of a site are texts that differ at it. Their tokens agree up to some place on its left and from some place on
its right; what lies between, the site, is written as tokens in one way in each text, but could be in many. The tokens
of the site are taken out and m masks put in their place, the same input for all alleles. What the network says of the
masks gives the probability of an allele as the sum over all ways to write its bases as m tokens,

    P(bases | m) = sum over v_1 ... v_m, which spell the bases, of p_1(v_1) ... p_m(v_m),

by the forward algorithm over places in the bases, and m itself is given equal weight from the fewest to the most
tokens that one of the texts has there. So no allele is unlikely because the tokenizer happens to cut it otherwise.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..genome.windows import Tokens, tokenize
from .batches import default_batch_tokens
from .models import Loaded
from .rows import Row, run_rows

BASES = "ACGT"


@dataclass(frozen=True)
class Site:
    """
    What alleles share and in what they differ.

    Attributes:
        left, right: ids of the tokens that all texts have at their beginning and at their end.
        bases: of each text, what lies between.
        counts: how many tokens that is in each.
    """

    left: np.ndarray
    right: np.ndarray
    bases: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def masks(self) -> range:
        """How many masks are tried."""
        return range(min(self.counts), max(self.counts) + 1)

    @classmethod
    def of(cls, texts: list[str], tokens: list[Tokens]) -> "Site":
        """Texts of a site and their tokens; every text keeps at least one token in the site."""
        shortest = min(map(len, tokens))
        first = tokens[0].ids
        before = _agreement([x.ids[:shortest] for x in tokens], first[:shortest])
        rest = shortest - before
        behind = _agreement([x.ids[len(x) - rest :][::-1] for x in tokens], first[len(first) - rest :][::-1])
        if before + behind == shortest:  # a text of which nothing would be left
            takes_left = before and texts[0][tokens[0].ends[before - 1] - 1] in BASES  # N cannot be spelt
            before, behind = (before - 1, behind) if takes_left else (before, behind - 1)
        stops = [len(x) - behind for x in tokens]
        bases = tuple(
            text[x.ends[before - 1] if before else 0 : x.ends[stop - 1]]
            for text, x, stop in zip(texts, tokens, stops, strict=True)
        )
        counts = tuple(stop - before for stop in stops)
        return cls(first[:before], first[len(first) - behind :], bases, counts)


def _agreement(rows: list[np.ndarray], first: np.ndarray) -> int:
    """How many ids all rows have in common from their beginning on."""
    same = np.ones(len(first), dtype=bool)
    for row in rows:
        same &= row == first
    return int(np.argmin(same)) if not same.all() else len(first)


class Spelling:
    """All ways to write bases as tokens of a vocabulary, as edges between places in them."""

    def __init__(self, bases: str, ids: dict[str, int], longest: int):
        edges = [
            (start, stop, ids[bases[start:stop]])
            for start in range(len(bases))
            for stop in range(start + 1, min(start + longest, len(bases)) + 1)
            if bases[start:stop] in ids
        ]
        self.length = len(bases)
        self.starts, self.stops, self.ids = np.array(edges, dtype=np.int64).reshape(-1, 3).T

    def log_probability(self, log_probabilities: np.ndarray) -> float:
        """
        The logarithm of the sum over all ways to write the bases as m tokens; -inf if there is none.

        Args:
            log_probabilities: (m, vocabulary), of each mask.
        """
        reached = np.full(self.length + 1, -np.inf)
        reached[0] = 0.0
        for row in log_probabilities:
            values = reached[self.starts] + row[self.ids]
            reached = np.full(self.length + 1, -np.inf)
            np.logaddexp.at(reached, self.stops, values)
        return float(reached[-1])


class AlleleLikelihood:
    """
    Args:
        loaded: of `models.load_masked_lm`.
        batch_tokens: tokens of a batch.
    """

    def __init__(self, loaded: Loaded, batch_tokens: int | None = None):
        self.loaded = loaded
        self.batch_tokens = batch_tokens or default_batch_tokens(loaded.device)
        special = set(loaded.tokenizer.all_special_tokens)
        self.ids = {token: i for token, i in loaded.tokenizer.get_vocab().items() if token not in special}
        self.longest = max(map(len, self.ids))

    def score(self, sites: list[list[str]]) -> list[np.ndarray]:
        """
        Args:
            sites: of each site the texts of its alleles, of the bases A, C, G, T and elsewhere also N.

        Returns:
            Of each site (alleles,) float64: the natural logarithm of the probability of the bases in which an allele
            differs from the others, given everything around them.
        """
        tokens = iter(tokenize(self.loaded.tokenizer, [text for texts in sites for text in texts]))
        found = [Site.of(texts, [next(tokens) for _ in texts]) for texts in sites]
        return self.of_sites(found)

    def of_sites(self, sites: list[Site]) -> list[np.ndarray]:
        """`score` of sites whose tokens are known."""
        tokenizer = self.loaded.tokenizer
        inputs, places, owners = [], [], []
        for i, site in enumerate(sites):
            for count in site.masks:
                inputs.append(np.concatenate([site.left, [tokenizer.mask_token_id] * count, site.right]))
                places.append(np.arange(len(site.left), len(site.left) + count))
                owners.append(i)
        spellings = [[Spelling(bases, self.ids, self.longest) for bases in site.bases] for site in sites]
        parts: list[list[list[float]]] = [[[] for _ in site.bases] for site in sites]
        for number, log_probabilities in masked_log_probabilities(self.loaded, inputs, places, self.batch_tokens):
            site = owners[number]
            for own, spelling in zip(parts[site], spellings[site], strict=True):
                own.append(spelling.log_probability(log_probabilities))
        return [
            np.array([np.logaddexp.reduce(values) - math.log(len(values)) for values in of_site]) for of_site in parts
        ]


def masked_log_probabilities(
    loaded: Loaded, inputs: list[np.ndarray], places: list[np.ndarray], batch_tokens: int
) -> Iterator[tuple[int, np.ndarray]]:
    """
    What the network says of some places of rows of tokens.

    Args:
        inputs: ids of each row, masks among them, without [CLS] and [SEP].
        places: of each row, which of its tokens are asked for.

    Returns:
        In the order of batches the row's number and (its places, vocabulary) natural logarithms, float64.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    dtype = next(model.cls.parameters()).dtype
    rows = []
    for i, ids in enumerate(inputs):
        ids = np.concatenate([[tokenizer.cls_token_id], ids, [tokenizer.sep_token_id]]).astype(np.int64)
        rows.append(Row(i, {"input_ids": ids}, 0, slice(0, len(ids))))
    for some, hidden, _ in run_rows(loaded, rows, lambda batch: model.bert(**batch)[0], batch_tokens):
        asked = [places[row.sequence] + 1 for row in some]
        of = torch.from_numpy(np.repeat(np.arange(len(some)), [len(own) for own in asked]))
        with torch.inference_mode():
            states = hidden[of.to(hidden.device), torch.from_numpy(np.concatenate(asked)).to(hidden.device)]
            found = model.cls(states.to(dtype)).float().log_softmax(dim=-1).cpu().double().numpy()
        parts = np.split(found, np.cumsum([len(own) for own in asked])[:-1])
        yield from zip([row.sequence for row in some], parts, strict=True)
