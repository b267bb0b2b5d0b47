"""k-mer tokenizers, the baselines that byte pairs are compared with: overlapping as DNABERT's, or not as NT's.

    from dnabert2.tokenizer.kmer import OverlappingKmerTokenizer, kmer_tokenizer

    tokenizer = kmer_tokenizer(6, overlapping=True)
    tokenizer("ACGTACGT", return_offsets_mapping=True)         # ACGTAC (0, 6), CGTACG (1, 7), GTACGT (2, 8)
    tokenizer.save_pretrained("kmers")
    OverlappingKmerTokenizer.from_pretrained("kmers")

Overlapping k-mers start at every base (Ji et al. 2021, DNABERT); the others at every k-th, and what is left over
before an N or the end becomes single bases (Dalla-Torre et al. 2023, Nucleotide Transformer). Special tokens have the
ids that they have in this project's byte-pair tokenizers, and stand where they stand there: [CLS] A [SEP] B [SEP].
"""

import copy
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .files import SETTINGS, SPECIAL_TOKENS

SIZES = (3, 4, 5, 6)
BASES = "ACGT"
# Slicing a text costs its length each time: long ones are first cut into blocks of so many k-mers.
BLOCK = 512


def kmer_tokenizer(k: int, overlapping: bool) -> PreTrainedTokenizerFast:
    """
    A fast tokenizer of k-mers of upper-case A, C, G and T.

    Ids: the five special tokens, for non-overlapping k-mers the four bases, then all 4^k k-mers in alphabetical order.
    White space separates words, as for our byte pairs; no k-mer spans it, nor a special token in the text.

    Overlapping: a word of n letters gives n - k + 1 tokens, token i with the offsets (i, i + k). A k-mer that holds
    any other letter, N or a lower-case base, is [UNK], so one N makes k of them; a word shorter than k is one [UNK].
    Not overlapping: n // k tokens and the n % k last bases one by one, counted anew after every other letter, each of
    which is one [UNK].

    Args:
        k: bases of a token, 3 to 6.

    Raises:
        ValueError: if k is anything else.
    """
    return OverlappingKmerTokenizer(k) if overlapping else _non_overlapping(k)


class OverlappingKmerTokenizer(PreTrainedTokenizerFast):
    """
    Overlapping k-mers. `kmer_tokenizer` says what becomes of a text.

    No component of `tokenizers` gives a letter to more than one token, so the cutting is Python's, called by the Rust
    code, and cannot be part of a `tokenizer.json`. A saved folder therefore holds `kmers.json` instead, which this
    class alone reads: `AutoTokenizer` and `load_tokenizer` refuse the folder rather than tokenise without the cutting.

    Args:
        k: bases of a token, 3 to 6.
        kmer_file: a saved `kmers.json`; for `from_pretrained`.
    """

    vocab_files_names = {"kmer_file": "kmers.json"}

    def __init__(self, k: int = 6, kmer_file: str | None = None, **kwargs):
        _check(k)
        backend = Tokenizer.from_file(str(kmer_file)) if kmer_file else _word_level(_kmers(k))
        kwargs.pop("tokenizer_object", None)
        super().__init__(tokenizer_object=backend, k=k, **{**SETTINGS, **kwargs})
        self.k = k
        self._attach()

    def _attach(self):
        cutter = pre_tokenizers.PreTokenizer.custom(_Cutter(self.k))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), cutter])

    @contextmanager
    def _without_cutting(self):
        """The Rust half alone, which can be written and copied."""
        self._tokenizer.pre_tokenizer = None
        try:
            yield self._tokenizer
        finally:
            self._attach()

    def _save_pretrained(self, save_directory, file_names, legacy_format=None, filename_prefix=None):
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / (prefix + self.vocab_files_names["kmer_file"])
        with self._without_cutting() as backend:
            backend.save(str(path))
        return (*file_names, str(path))

    def __getstate__(self):
        with self._without_cutting() as backend:
            return {**self.__dict__, "_tokenizer": copy.deepcopy(backend)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._attach()


class _Cutter:
    """A pre-tokenizer: every stretch of k letters of a word, the whole of a shorter word."""

    def __init__(self, k: int):
        self.k = k

    def pre_tokenize(self, pretokenized):
        pretokenized.split(self.cut)

    def cut(self, _, word):
        letters = len(str(word))
        if letters < self.k:
            return [word]
        pieces = []
        for start in range(0, letters - self.k + 1, BLOCK):
            size = min(BLOCK, letters - self.k + 1 - start)
            block = word[start : start + size + self.k - 1]
            pieces += [block[i : i + self.k] for i in range(size)]
        return pieces


def _non_overlapping(k: int) -> PreTrainedTokenizerFast:
    _check(k)
    backend = _word_level([*BASES, *_kmers(k)])
    cut = pre_tokenizers.Split(Regex(rf"[{BASES}]{{{k}}}|\S"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), cut])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SETTINGS)


def _kmers(k: int) -> list[str]:
    return ["".join(letters) for letters in product(BASES, repeat=k)]


def _check(k: int):
    if k not in SIZES:
        raise ValueError(f"k = {k!r}: k-mers have {SIZES[0]} to {SIZES[-1]} bases.")


def _word_level(words: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return backend
