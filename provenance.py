"""Where a number comes from: versions, git commit and device, recorded beside every result this project writes.

from dnabert2.provenance import provenance
json.dumps({"metrics": metrics, "provenance": provenance("cpu")})
"""

import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from . import __version__

ROOT = Path(__file__).resolve().parent
# What may differ from the commit without making a result another: results themselves, and the pages that quote them.
NOT_CODE = (":!benchmarks/results", ":!*.md")


def provenance(device="cpu") -> dict:
    """
    A JSON-ready record of the circumstances of a run.

    Args:
        device: a torch device or its name; the one the run computed on.

    Returns:
        `date` (UTC, ISO 8601); `versions` of python, torch, transformers and dnabert2; `git` as in `git_state`;
        `device` with its `type`, `name`, `memory_bytes` and capabilities; `threads` torch computes with on the CPU.
    """
    import torch

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "dnabert2": __version__,
        },
        "git": git_state(),
        "device": _describe_device(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def git_state(root: Path = ROOT) -> dict:
    """
    `commit`, and `dirty`: whether anything but results and Markdown pages differs from it, new files included.

    Both are None if `root` is not the top of a git checkout, or there is no git.
    """
    # An installed copy may lie inside somebody else's repository, whose commit says nothing about ours.
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != Path(root).resolve():
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--", ".", *NOT_CODE))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _describe_device(device) -> dict:
    import psutil
    import torch

    from .precision import has_fast_bfloat16, has_fast_float16

    described = {
        "type": device.type,
        "fast_bfloat16": has_fast_bfloat16(device),
        "fast_float16": has_fast_float16(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    elif device.type == "cpu":
        described |= {
            "name": _cpu_name(),
            "memory_bytes": psutil.virtual_memory().total,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
        }
    return described


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
