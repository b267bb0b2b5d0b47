"""How fast training goes: tokens a second, and the share of the hardware's arithmetic that the model uses (MFU)."""

import time

import torch

# Dense bfloat16 TFLOP/s with float32 accumulation, from the makers' data sheets, by what the device's name holds; the
# first that fits counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
}


def flops_per_token(config, length: int, masked_share: float) -> float:
    """
    Floating-point operations of training on one token: three times those of the forward pass.

    Matrix products only, a multiplication and an addition being two. The head counts for the masked tokens alone.

    Args:
        config: a `DNABert2Config`.
        length: tokens of a sequence, for attention.
    """
    width = config.hidden_size
    linear = 2 * config.num_hidden_layers * (4 * width**2 + 3 * width * config.intermediate_size)
    attention = 4 * config.num_hidden_layers * width * length
    head = 2 * masked_share * (width**2 + width * config.vocab_size)
    return 3 * (linear + attention + head)


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """
    The most operations a second that this device could do, and where that figure comes from.

    From data sheets for known GPUs in bfloat16 or float16; else the best of some large matrix products, measured.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for part, tflops in PEAK_TFLOPS.items():
            if part in name:
                return tflops * 1e12, f"data sheet of {part}"
    return _measured_peak(device, dtype), "the fastest of some matrix products of 2,048, measured"


def _measured_peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Counts tokens against a clock that stops while something else than training goes on."""

    def __init__(self, flops_per_token: float, peak: float, world_size: int):
        self.flops_per_token, self.peak, self.world_size = flops_per_token, peak, world_size
        self.tokens, self.seconds, self.started = 0, 0.0, None

    def start(self):
        self.started = time.perf_counter()

    def pause(self):
        if self.started is not None:
            self.seconds += time.perf_counter() - self.started
            self.started = None

    def read(self) -> dict[str, float]:
        """`tokens_per_second`, over all processes, and `mfu` since the last reading; starts anew."""
        self.pause()
        rate = self.tokens * self.world_size / self.seconds if self.seconds else 0.0
        self.tokens, self.seconds = 0, 0.0
        self.start()
        return {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops_per_token / (self.peak * self.world_size), 4),
        }
