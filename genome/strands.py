"""The other strand of a sequence."""

COMPLEMENT = str.maketrans("ACGTUNacgtunRYKMBVDHrykmbvdh", "TGCAANtgcaanYRMKVBHDyrmkvbhd")


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction; ambiguity codes are complemented too, other letters stay."""
    return sequence.translate(COMPLEMENT)[::-1]
