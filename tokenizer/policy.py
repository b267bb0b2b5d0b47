"""What becomes of letters that are no A, C, G or T: an explicit policy, and a report of what it met.

The published tokenizer has no normaliser: every lower-case, U, N or IUPAC letter is one [UNK] and splits the byte
pairs around it. Its ids for upper-case ACGT never change here. Everything else is decided by a `TextPolicy`, before
the tokenizer.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import UserError

IUPAC = frozenset("ACGTURYSWKMBDHVN")
AMBIGUOUS = "RYSWKMBDHV"
AT_ONCE = 1_000_000  # letters that are counted


@dataclass(frozen=True)
class TextPolicy:
    """
    Attributes:
        upper_case: read soft-masked (lower-case) bases as their upper-case letters.
        u_to_t: read RNA's U as T.
        iupac: "n" reads ambiguity codes (R, Y, S, W, K, M, B, D, H, V) as N; "keep" leaves them, each an [UNK].
        n: "keep" leaves every N, each one [UNK], as the published tokenizer does; "collapse" makes a run of N a single
            one; "drop" takes them out, which joins what stood on either side.
    """

    upper_case: bool = True
    u_to_t: bool = True
    iupac: Literal["n", "keep"] = "n"
    n: Literal["keep", "collapse", "drop"] = "keep"

    def table(self) -> dict[int, str]:
        """The letter-by-letter part, for `str.translate`."""
        pairs = {}
        if self.u_to_t:
            pairs |= {"U": "T", "u": "T" if self.upper_case else "t"}
        if self.iupac == "n":
            pairs |= dict.fromkeys(AMBIGUOUS, "N")
            pairs |= {code.lower(): "N" if self.upper_case else "n" for code in AMBIGUOUS}
        return str.maketrans(pairs)


@dataclass
class PolicyReport:
    """
    Counts of what a policy met, and of what the tokenizer then did not know; `describe()` says it in a sentence.

    Attributes:
        sequences, bases: how much text was read.
        lower_case, uracil, ambiguous, n: letters of each kind, before the policy.
        tokens, unknown: tokens made, and how many of them are [UNK]; filled by `count_tokens`.
    """

    sequences: int = 0
    bases: int = 0
    lower_case: int = 0
    uracil: int = 0
    ambiguous: int = 0
    n: int = 0
    tokens: int = 0
    unknown: int = 0
    policy: TextPolicy = field(default_factory=TextPolicy)

    def count_letters(self, sequence: str):
        codes = np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(codes), AT_ONCE):  # bincount takes eight bytes a letter
            counts += np.bincount(codes[start : start + AT_ONCE], minlength=256)

        def total(letters):
            return int(sum(counts[ord(c)] + counts[ord(c.lower())] for c in letters))

        self.sequences += 1
        self.bases += len(sequence)
        self.lower_case += int(counts[ord("a") : ord("z") + 1].sum())
        self.uracil += total("U")
        self.ambiguous += total(AMBIGUOUS)
        self.n += total("N")

    def count_tokens(self, input_ids: list[int], unk_token_id: int = 0):
        self.tokens += len(input_ids)
        self.unknown += sum(i == unk_token_id for i in input_ids)

    def describe(self) -> str:
        def share(part, whole):
            return f"{part:,} ({100 * part / whole:.2g} %)" if whole else "0"

        parts = [
            f"{self.bases:,} bases in {self.sequences:,} sequences",
            f"lower case {share(self.lower_case, self.bases)}"
            + (" read as upper case" if self.policy.upper_case else " kept"),
            f"U {share(self.uracil, self.bases)}" + (" read as T" if self.policy.u_to_t else " kept"),
            f"ambiguity codes {share(self.ambiguous, self.bases)}"
            + (" read as N" if self.policy.iupac == "n" else " kept"),
            f"N {share(self.n, self.bases)} ({self.policy.n})",
        ]
        if self.tokens:
            parts.append(f"[UNK] {share(self.unknown, self.tokens)} of {self.tokens:,} tokens")
        return "; ".join(parts) + "."


def normalise(sequence: str, policy: TextPolicy, report: PolicyReport | None = None) -> str:
    """
    Apply `policy` to one sequence and count what was met in `report`.

    Raises:
        UserError: if a letter is no nucleotide code, or if nothing but N is left. The caller adds where it stands.
    """
    if report is not None:
        report.count_letters(sequence)
    foreign = set(sequence.upper()) - IUPAC
    if foreign:
        letters = " ".join(repr(letter) for letter in sorted(foreign)[:5])
        raise UserError(f"holds {letters}, which no nucleotide code uses; give DNA or RNA letters only")
    text = sequence.translate(policy.table())
    if policy.upper_case:
        text = text.upper()
    if policy.n == "drop":
        text = text.replace("N", "").replace("n", "")
    elif policy.n == "collapse":
        text = _collapse(_collapse(text, "N"), "n")
    if not text.strip("Nn"):
        raise UserError("holds no base but N; remove it" if sequence else "is empty; remove it or fill it in")
    return text


def _collapse(text: str, letter: str) -> str:
    while letter * 2 in text:
        text = text.replace(letter * 2, letter)
    return text
