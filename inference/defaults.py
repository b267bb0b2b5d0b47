"""What the commands do if not told otherwise, and what they can be told. No torch here: `--help` answers at once."""

POOLINGS = ("mean", "cls", "max")  # one vector a sequence
WITH_PLACES = ("tokens", "bases")  # one vector for each of them
ALL_POOLINGS = (*POOLINGS, *WITH_PLACES)
WINDOW, OVERLAP = 512, 64  # tokens
SCORES = ("llr", "pseudo_likelihood", "embedding")  # of variants
CONTEXT = 300  # bases on either side of a variant
STRIDE = 7  # of the pseudo-likelihood: one token of so many is masked at a time, about the 15 % of pretraining
