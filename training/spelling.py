"""Word embeddings that begin with how their tokens are spelt, for a network trained from scratch.

The ids of a byte-pair vocabulary say nothing of the bases behind them: that ACGT ends as CCGT does, a network of 4,096
random vectors has to find out from how the two are used, which takes most of a short run. A random projection of each
token's first and last bases, length and composition, mixed with noise, tells it from the start. The network stays as
it is and the vectors train like any others; docs/log.md of 2026-11-24 has what it is worth.
"""

import math

import numpy as np
import torch

ENDS = 4  # bases of either end that are told apart
LONGEST = 12  # bases; longer tokens share one feature
SHARE = 0.9  # of a vector's length from the spelling


def spelling_features(tokens: list[str]) -> np.ndarray:
    """
    (tokens, features) float64: which base stands at each of the first and last four places, nearer ones weighing more;
    the number of bases; the share of each base.
    """
    rows = []
    for token in tokens:
        row = []
        for end in (token[:ENDS].ljust(ENDS), token[::-1][:ENDS].ljust(ENDS)):
            row += [(base == letter) / (1 + place / 2) for place, base in enumerate(end) for letter in "ACGT"]
        row += [0.5 * (min(len(token), LONGEST) == length) for length in range(1, LONGEST + 1)]
        row += [token.count(letter) / len(token) for letter in "ACGT"]
        rows.append(row)
    return np.array(rows)


@torch.no_grad()
def initialise_by_spelling(model, tokenizer):
    """
    Overwrite the word embeddings of all tokens of bases, in place, with vectors of the same standard deviation.

    Draws from torch's global generator.
    """
    weight = model.get_input_embeddings().weight
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ids = [i for i, token in enumerate(tokens) if set(token) <= set("ACGT")]
    features = torch.from_numpy(spelling_features([tokens[i] for i in ids])).float()
    features = features - features.mean(dim=0)
    spelt = features @ torch.randn(features.shape[1], weight.shape[1])
    noise = torch.randn(len(ids), weight.shape[1])
    mixed = SHARE * spelt / spelt.std() + math.sqrt(1 - SHARE**2) * noise
    weight[ids] = (model.config.initializer_range * mixed).to(weight)
