"""What decides how much attention can leave out: the norms of queries and keys, by head, and the share that remains.

A key j can be left out for a query i once slope * |i - j| outweighs by how much their score can exceed the query's
own: |q_i| |k_j - c| * scale - q_i . (k_i - c) * scale, where c is the mean key, which softmax does not see. Its
largest value over queries and keys is U, in units of the exponent of e. Plain PyTorch operations, on any device.
"""

import torch

from ..bert_layers.skipping import TILE, key_spans

MODES = ("exact", "fp32")


@torch.no_grad()
def norms(qkv: torch.Tensor, lengths: list[int], slopes: torch.Tensor) -> dict:
    """
    Measure one batch.

    Args:
        qkv: (tokens, 3, heads, head_dim); lengths: tokens of each sequence; slopes: (heads,).

    Returns:
        Lists with a number a head, the largest over the sequences: `q_max` (|q|), `key_max` (|k - c|), `u_max`; and
        `computed_share`, for "exact" and "fp32" the share of query-key pairs that the bound leaves to compute, in
        whole tiles of queries and blocks of keys. (Batches of short sequences the kernels compute whole, whatever
        the bound says.)
    """
    scale = qkv.shape[3] ** -0.5
    largest, computed = [], dict.fromkeys(MODES, 0)
    for sequence in qkv.split(lengths):
        q, k = sequence[:, 0].float(), sequence[:, 1].float()  # (length, heads, head_dim)
        k = k - k.mean(0)
        q_norm, k_norm = q.norm(dim=2), k.norm(dim=2)
        excess = q_norm * k_norm.amax(0) - (q * k).sum(2)
        largest.append(torch.stack([q_norm.amax(0), k_norm.amax(0), excess.amax(0) * scale]))
        for mode in MODES:
            computed[mode] = computed[mode] + _pairs(key_spans(sequence[:, 0], sequence[:, 1], slopes, skip=mode), q)
    q_max, key_max, u_max = torch.stack(largest).amax(0).tolist()
    pairs = sum(n * n for n in lengths)
    share = {mode: (computed[mode] / pairs).tolist() for mode in MODES}
    return {"q_max": q_max, "key_max": key_max, "u_max": u_max, "computed_share": share}


def _pairs(spans: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Query-key pairs within `spans` (heads, tiles, 2), by head."""
    rows = torch.tensor([len(x) for x in q.split(TILE)], device=q.device)
    return ((spans[..., 1] - spans[..., 0]) * rows).sum(1).double()
