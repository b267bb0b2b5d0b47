"""The processes that a launcher started for one command, and what they wait for.

`torchrun --nproc_per_node 4 -m dnabert2.inference.embed ...` or `accelerate launch` give each process its number in
the environment. Each takes its share of the input and writes files of its own; the first one puts them together when
all are done.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

from ..errors import RunFailed, UserError

WAIT = timedelta(days=30)  # of the first one for the slowest; one that dies is noticed at once


@dataclass(frozen=True)
class Ranks:
    """
    Attributes:
        rank: this process, from 0.
        size: how many there are.
        local: this process among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "Ranks":
        """What torchrun, accelerate or another launcher says; one process if none does."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        return cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """The torch device called `name`; "auto" is this process's GPU, or the CPU if there is none."""
        import torch

        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"--device {name}: torch knows no such device; give auto, cpu, cuda or cuda:1.") from error
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise UserError(f"--device {name}: there is no GPU that this torch can use; leave the option out.")
            if (device.index or 0) >= torch.cuda.device_count():
                raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} GPUs, counted from 0.")
            if device.index is None:
                return f"cuda:{self.local % torch.cuda.device_count()}"
        return name

    def join(self):
        """Meet the others, so that a process that dies is noticed."""
        if self.size > 1:
            import torch.distributed as dist

            dist.init_process_group("gloo", timeout=WAIT)

    def wait_for_all(self):
        """
        Come back in the first process when all others have come here too.

        Raises:
            RunFailed: if one of them is gone.
        """
        if self.size == 1:
            return
        import torch.distributed as dist

        try:
            dist.monitored_barrier(timeout=WAIT, wait_all_ranks=False)
        except RuntimeError as error:
            raise RunFailed(
                f"another of the {self.size} processes has failed or was killed ({str(error).splitlines()[0][:200]}); "
                "what is finished is kept, start the same command again to go on."
            ) from error
