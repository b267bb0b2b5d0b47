"""A small convolutional network, trained from scratch: the floor that a pretrained model has to beat on motifs.

    from dnabert2.gue_eval.floors import FLOORS
    result = FLOORS["cnn"]("cnn", splits, classes=["0", "1"], strandless=True, seed=42, device="cpu", limits=None)

Three convolutions of 192 channels over the bases and the maximum over all places, after DeepBind (Alipanahi et al.
2015) and Basset (Kelley et al. 2016). Where a task knows no strand, the maximum is over the places of both strands,
so that a sequence and its reverse complement get the same prediction (Shrikumar et al. 2017 weigh the alternatives).
"""

import copy
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..precision import has_fast_bfloat16
from ..training.metrics import classification_scores
from .floors import CHOSEN_ON, FloorLimits, FloorResult, Splits
from .kmer_counts import base_codes

CHANNELS = 192
WIDTHS = (15, 5, 5)  # bases under a filter of the first layer, then places after the pooling
POOL = 2  # places that become one after the first layer
DROPOUT = 0.3
BATCH = 64
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
WARMUP = 0.1  # share of all steps
PATIENCE = 10  # epochs without a better development MCC


def encode(sequences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns:
        (sequences, longest) int8: A, C, G, T as 0 to 3, N and whatever follows a sequence's end as -1; and the
        (sequences,) int64 lengths.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    codes = torch.full((len(sequences), int(lengths.max())), -1, dtype=torch.int8)
    for row, sequence in zip(codes, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(base_codes(sequence))
    return codes, lengths


def reverse_complement(codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The other strand of (rows, longest) codes, read from its own start; what follows a row's end stays behind it."""
    places = lengths[:, None] - 1 - torch.arange(codes.shape[1], device=codes.device)
    turned = codes.gather(1, places.clamp(min=0))
    return torch.where((places >= 0) & (turned >= 0), 3 - turned, -1)


class MotifNetwork(nn.Module):
    """
    Args:
        classes: outputs.
        strandless: read both strands, and take the maximum over both.
        channels: filters of each layer.
    """

    def __init__(self, classes: int, strandless: bool, channels: int):
        super().__init__()
        self.strandless = strandless
        inputs = (4, channels, channels)
        # Two-dimensional, one row high: in channels-last order this is twice as fast on a CPU as Conv1d.
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width_in, channels, (1, width), padding=(0, width // 2), bias=False)
            for width_in, width in zip(inputs, WIDTHS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in inputs)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(rows, longest) codes and (rows,) lengths, as of `encode` -> (rows, classes) logits."""
        if self.strandless:
            codes = torch.cat([codes, reverse_complement(codes, lengths)])
            strands = self.pooled(codes, lengths.repeat(2))
            features = torch.maximum(*strands.chunk(2))
        else:
            features = self.pooled(codes, lengths)
        return self.classifier(self.dropout(features))

    def pooled(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The greatest value of each channel over the real places of each row: (rows, channels)."""
        bases = torch.arange(4, device=codes.device, dtype=codes.dtype)
        x = (codes[:, None, :, None] == bases).to(self.classifier.weight.dtype).permute(0, 3, 1, 2)
        places = torch.arange(codes.shape[1], device=codes.device)
        is_real = (places < lengths[:, None])[:, None, None, :]
        if bool(is_real.all()):
            is_real = None
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            # Zeros after a sequence's end are what the next layer sees beyond any end, and, after a ReLU, no maximum.
            if is_real is not None:
                x = x * is_real
            if layer == 0:
                x = F.max_pool2d(x, (1, POOL), ceil_mode=True)
                is_real = None if is_real is None else is_real[..., ::POOL]
        return x.amax(dim=(2, 3))


def fixed_settings(strandless: bool) -> dict:
    """What training does not choose."""
    return {
        "channels": CHANNELS,
        "widths": list(WIDTHS),
        "pool": POOL,
        "dropout": DROPOUT,
        "batch_size": BATCH,
        "peak_learning_rate": PEAK_LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "strands": "maximum over both" if strandless else "as given",
        "chosen_on": CHOSEN_ON,
    }


def fit_predict(
    splits: Splits,
    *,
    classes: list[str],
    strandless: bool,
    seed: int = 42,
    device: str = "cpu",
    limits: FloorLimits | None = None,
) -> FloorResult:
    """
    Train on `train`, keep the epoch with the best development MCC, predict `dev` and `test`.

    Args:
        splits: of each split, sequences and class ids; all three are needed.
        seed: of weights, dropout and order.
        limits: how long to train; see `FloorLimits`.
    """
    limits, device = limits or FloorLimits(), torch.device(device)
    encoded = {split: encode(sequences) for split, (sequences, _) in splits.items()}
    labels = {split: torch.as_tensor(ids, dtype=torch.int64) for split, (_, ids) in splits.items()}
    torch.manual_seed(seed)
    network = MotifNetwork(len(classes), strandless, CHANNELS).to(device, memory_format=torch.channels_last)
    epochs = _epochs(int(encoded["train"][1].sum()) * (2 if strandless else 1), limits)
    start, notes = time.perf_counter(), []
    best, best_score, best_epoch, history = None, None, 0, []
    training = _Training(network, *encoded["train"], labels["train"], epochs, seed)
    for epoch in range(1, epochs + 1):
        training.run_epoch()
        dev = predict(network, *encoded["dev"])
        mcc = classification_scores(labels["dev"].numpy(), dev.argmax(axis=1))["matthews_correlation"]
        history.append(round(mcc, 4))
        if best_score is None or mcc > best_score:
            best, best_score, best_epoch = copy.deepcopy(network.state_dict()), mcc, epoch
        if epoch - best_epoch >= PATIENCE:
            break
        if limits.seconds is not None and time.perf_counter() - start > limits.seconds and epoch < epochs:
            notes.append(f"Stopped after {epoch} of {epochs} epochs, at its limit of {limits.seconds:g} seconds.")
            break
    network.load_state_dict(best)
    seconds = time.perf_counter() - start
    settings = {
        **fixed_settings(strandless),
        "epochs": epochs,
        "best_epoch": best_epoch,
        "dev_mcc_by_epoch": history,
        "precision": "bfloat16 autocast" if has_fast_bfloat16(device) else "float32",
    }
    dev, test = (predict(network, *encoded[split]) for split in ("dev", "test"))
    parameters = sum(p.numel() for p in network.parameters())
    return FloorResult(dev, test, parameters, settings, seconds, notes)


def _epochs(bases: int, limits: FloorLimits) -> int:
    return max(3, min(limits.epochs, round(limits.bases / bases)))


class _Training:
    def __init__(self, network: MotifNetwork, codes, lengths, labels, epochs: int, seed: int):
        self.network, self.codes, self.lengths, self.labels = network, codes, lengths, labels
        self.draw = torch.Generator().manual_seed(seed)
        self.device = network.classifier.weight.device
        self.optimizer = torch.optim.AdamW(network.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        steps = epochs * math.ceil(len(labels) / BATCH)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
        )

    def run_epoch(self):
        self.network.train()
        for rows in torch.randperm(len(self.labels), generator=self.draw).split(BATCH):
            lengths = self.lengths[rows]
            codes = self.codes[rows, : int(lengths.max())]
            with _autocast(self.device):
                logits = self.network(codes.to(self.device), lengths.to(self.device))
            loss = F.cross_entropy(logits.float(), self.labels[rows].to(self.device))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()


def _autocast(device: torch.device):
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_fast_bfloat16(device))


@torch.no_grad()
def predict(network: MotifNetwork, codes: torch.Tensor, lengths: torch.Tensor, batch_size: int = 256) -> np.ndarray:
    """(rows, classes) float64 probabilities; rows of like length share a batch."""
    network.eval()
    device = network.classifier.weight.device
    probabilities = torch.zeros(len(codes), network.classifier.out_features, dtype=torch.float64)
    for rows in torch.argsort(lengths, stable=True).split(batch_size):
        longest = int(lengths[rows].max())
        with _autocast(device):
            logits = network(codes[rows, :longest].to(device), lengths[rows].to(device))
        probabilities[rows] = logits.double().softmax(dim=1).cpu()
    return probabilities.numpy()
