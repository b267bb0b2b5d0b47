"""The text policy: what becomes of letters that are no A, C, G or T, and the report that says so."""

import random

import pytest

from dnabert2.errors import UserError
from dnabert2.tokenizer import policy as policy_module
from dnabert2.tokenizer.files import OURS, wrap_tokenizer
from dnabert2.tokenizer.policy import PolicyReport, TextPolicy, normalise


@pytest.mark.parametrize(
    ("policy", "text", "expected"),
    [
        (TextPolicy(), "ACGTN", "ACGTN"),
        (TextPolicy(), "acgun", "ACGTN"),
        (TextPolicy(), "ARYt", "ANNT"),
        (TextPolicy(upper_case=False), "acgtU", "acgtT"),
        (TextPolicy(upper_case=False), "ryuA", "nntA"),
        (TextPolicy(u_to_t=False), "AcU", "ACU"),
        (TextPolicy(iupac="keep"), "ArY", "ARY"),
        (TextPolicy(n="drop"), "ANNcRT", "ACT"),
        (TextPolicy(n="collapse"), "ANNNNNCNG", "ANCNG"),
    ],
)
def test_policies(policy, text, expected):
    assert normalise(text, policy) == expected


def test_default_policy_leaves_upper_case_acgt_alone():
    text = "".join(random.Random(0).choices("ACGT", k=5000))
    assert normalise(text, TextPolicy()) == text


def test_report_counts_letters_and_unknown_tokens():
    report = PolicyReport()
    text = normalise("acgtACGTUuRNNN", TextPolicy(), report)
    assert (report.sequences, report.bases, report.lower_case, report.uracil) == (1, 14, 5, 2)
    assert (report.ambiguous, report.n) == (1, 3)
    tokenizer = wrap_tokenizer(OURS / "tokenizer.json")
    report.count_tokens(tokenizer(text)["input_ids"], tokenizer.unk_token_id)
    assert report.unknown == 4  # R became N, and every N is one [UNK]
    assert f"[UNK] 4 ({100 * 4 / report.tokens:.2g} %) of {report.tokens} tokens" in report.describe()


def test_letters_of_long_sequences_are_counted_in_parts(monkeypatch):
    whole, parts = PolicyReport(), PolicyReport()
    text = "acgtACGTUuRNNN" * 7
    whole.count_letters(text)
    monkeypatch.setattr(policy_module, "AT_ONCE", 10)
    parts.count_letters(text)
    assert parts == whole and (whole.bases, whole.n) == (98, 21)


@pytest.mark.parametrize(
    ("text", "message"), [("MKVLE", "'E' 'L'"), ("NNNN", "no base but N"), ("", "is empty"), ("AC-GT", "'-'")]
)
def test_unusable_text_is_a_user_error(text, message):
    with pytest.raises(UserError, match=message):
        normalise(text, TextPolicy())
