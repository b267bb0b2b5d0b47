"""Scores of variants: how much less likely, or how different, a sequence becomes with an allele in it.

    scorer = VariantScorer(load_masked_lm("mini"))
    scorer.score([Haplotypes("ACGT...", "T", "C", "GGCA...")])      # {"llr": (1,), "pseudo_likelihood": (1,), ...}

llr: log P(alt) - log P(ref) of the masked alleles, summed over all ways of writing them as tokens, see
`likelihood.py`. Of single-base variants all four bases take part, so that the score does not depend on which others
are asked for.

pseudo_likelihood: the sum over tokens of log p(token | the others), of the sequence with alt less that with ref. Every
seventh token is masked at a time, as many as in training (Salazar et al. 2020 mask them one by one).

embedding_l2, embedding_cosine: the distance of the two mean vectors (Dalla-Torre et al. 2024).

All are means over both strands. Scores in natural logarithms are below 0 where the model finds alt less likely.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..genome.strands import reverse_complement
from ..genome.windows import tokenize
from .batches import default_batch_tokens
from .defaults import SCORES, STRIDE
from .embedding import Embedding
from .likelihood import AlleleLikelihood, masked_log_probabilities
from .models import Loaded

COLUMNS = {
    "llr": ("llr",),
    "pseudo_likelihood": ("pseudo_likelihood",),
    "embedding": ("embedding_l2", "embedding_cosine"),
}
BASES = "ACGT"
ANCHOR = 100  # bases


@dataclass(frozen=True)
class Haplotypes:
    """
    A variant within its sequence.

    Attributes:
        left, right: bases on either side.
        ref, alt: alleles.
    """

    left: str
    ref: str
    alt: str
    right: str

    @property
    def is_snv(self) -> bool:
        return len(self.ref) == len(self.alt) == 1

    @property
    def texts(self) -> tuple[str, str]:
        return self.left + self.ref + self.right, self.left + self.alt + self.right

    def other_strand(self) -> "Haplotypes":
        left, ref, alt, right = map(reverse_complement, (self.left, self.ref, self.alt, self.right))
        return Haplotypes(right, ref, alt, left)


class VariantScorer:
    """
    Args:
        loaded: of `models.load_masked_lm`.
        scores: which of SCORES.
        both_strands: the mean over both, else the forward strand alone.
        stride: of the pseudo-likelihood, one token of so many is masked at a time; 0 masks them one by one.
        batch_tokens: tokens of a batch.

    Raises:
        UserError: if a score is unknown.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        scores: tuple[str, ...] = SCORES,
        both_strands: bool = True,
        stride: int = STRIDE,
        batch_tokens: int | None = None,
    ):
        unknown = [name for name in scores if name not in SCORES]
        if unknown or not scores:
            raise UserError(f"--scores {' '.join(scores)}: choose of {', '.join(SCORES)}.")
        self.loaded, self.scores, self.both_strands, self.stride = loaded, scores, both_strands, stride
        self.batch_tokens = batch_tokens or default_batch_tokens(loaded.device)
        self.likelihood = AlleleLikelihood(loaded, self.batch_tokens)
        encoder = Loaded(loaded.model.bert, loaded.tokenizer, loaded.architecture)
        self.embedding = Embedding(encoder, window=None, batch_tokens=self.batch_tokens)
        self.identity = loaded.identity | {"scores": list(scores), "both_strands": both_strands, "stride": stride}

    @property
    def columns(self) -> list[str]:
        return [column for name in self.scores for column in COLUMNS[name]]

    def score(self, variants: list[Haplotypes]) -> dict[str, np.ndarray]:
        """Of each column of `columns` (variants,) float64."""
        of = {"llr": self._llr, "pseudo_likelihood": self._pseudo_likelihood, "embedding": self._distances}
        strands = [variants, [variant.other_strand() for variant in variants]][: 1 + self.both_strands]
        found: dict[str, np.ndarray] = {}
        for name in self.scores:
            made = np.mean([of[name](strand) for strand in strands], axis=0)
            found |= dict(zip(COLUMNS[name], made, strict=True))
        return found

    def base_log_probabilities(self, places: list[tuple[str, str]]) -> np.ndarray:
        """
        The logarithm of the probability of A, C, G and T at places given as what is on their left and right.

        Returns:
            (places, 4) float64, normalised over the four, the mean over both strands before that.
        """
        made = self._four_bases(places)
        if self.both_strands:
            other = [(reverse_complement(right), reverse_complement(left)) for left, right in places]
            made = (made + self._four_bases(other)[:, ::-1]) / 2  # A, C, G, T are T, G, C, A on the other strand
        return made - np.logaddexp.reduce(made, axis=1, keepdims=True)

    def _four_bases(self, places: list[tuple[str, str]]) -> np.ndarray:
        sites = [[left + base + right for base in BASES] for left, right in places]
        return np.array(self.likelihood.score(sites)).reshape(-1, len(BASES))

    def _llr(self, variants: list[Haplotypes]) -> np.ndarray:
        single = list(dict.fromkeys((v.left, v.right) for v in variants if v.is_snv))
        others = list(dict.fromkeys(v.texts for v in variants if not v.is_snv))
        four = dict(zip(single, self._four_bases(single), strict=True))
        two = dict(zip(others, self.likelihood.score([list(texts) for texts in others]), strict=True))
        found = np.empty((1, len(variants)))
        for i, variant in enumerate(variants):
            if variant.is_snv:
                of = four[variant.left, variant.right]
                found[0, i] = of[BASES.index(variant.alt)] - of[BASES.index(variant.ref)]
            else:
                of_ref, of_alt = two[variant.texts]
                found[0, i] = of_alt - of_ref
        return found

    def _pseudo_likelihood(self, variants: list[Haplotypes]) -> np.ndarray:
        # A text and how many of its bases are on either side of the site, by which its masks are placed.
        wanted = [(text, len(v.left), len(v.right)) for v in variants for text in v.texts]
        distinct = list(dict.fromkeys(wanted))
        value = dict(zip(distinct, self._sums(distinct), strict=True))
        sums = np.array([value[one] for one in wanted]).reshape(-1, 2)
        return (sums[:, 1] - sums[:, 0])[None]

    def _sums(self, texts: list[tuple[str, int, int]]) -> np.ndarray:
        inputs, places, answers, owners = [], [], [], []
        for i, tokens in enumerate(tokenize(self.loaded.tokenizer, [text for text, *_ in texts])):
            for masked in mask_places(tokens.ends, *texts[i][1:], self.stride):
                ids = tokens.ids.copy()
                ids[masked] = self.loaded.tokenizer.mask_token_id
                inputs.append(ids)
                places.append(masked)
                answers.append(tokens.ids[masked])
                owners.append(i)
        sums = np.zeros(len(texts))
        for number, found in masked_log_probabilities(self.loaded, inputs, places, self.batch_tokens):
            sums[owners[number]] += found[np.arange(len(found)), answers[number]].sum()
        return sums

    def _distances(self, variants: list[Haplotypes]) -> np.ndarray:
        texts = list(dict.fromkeys(text for v in variants for text in v.texts))
        vector = dict(zip(texts, self.embedding.vectors(texts).astype(np.float64), strict=True))
        ref, alt = (np.array([vector[v.texts[i]] for v in variants]).reshape(-1, self.embedding.size) for i in (0, 1))
        lengths = np.linalg.norm(ref, axis=1) * np.linalg.norm(alt, axis=1)
        return np.stack([np.linalg.norm(alt - ref, axis=1), 1 - (ref * alt).sum(axis=1) / lengths])


def mask_places(ends: np.ndarray, left: int, right: int, stride: int) -> list[np.ndarray]:
    """
    Which tokens are masked together: every token once, those of one turn `stride` apart.

    Turns count from a token that lies ANCHOR bases off the site, on its left and on its right: so that tokens that two
    alleles share are masked together with the same others, and wherever the sequence is cut out of the genome.

    Args:
        ends: (tokens,) the base behind each.
        left, right: bases on either side of the site.
        stride: 0 for one token at a time.
    """
    count = len(ends)
    if not stride:
        return [np.array([i]) for i in range(count)]
    places, length = np.arange(count), int(ends[-1])
    before = int(np.searchsorted(ends, left - ANCHOR, side="right"))
    behind = int(np.searchsorted(ends, length - right + ANCHOR, side="right"))
    turns = np.where(ends <= left, places - before, behind - places) % stride
    return [found for turn in range(stride) if len(found := np.flatnonzero(turns == turn))]
