"""What several processes of one run have to settle: who looks at the disk, and how each ends."""

import atexit
import os
import sys

import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments


def from_main(function, args: TrainingArguments):
    """What `function` returns in the first process, in all of them; only that one looks at the output folder."""
    answer = [function() if args.process_index == 0 else None]
    return broadcast_object_list(answer)[0] if args.world_size > 1 else answer[0]


def leave(code: int):
    """
    End this process with `code`, as `sys.exit` does, functions of `atexit` included.

    Of several processes on CPUs, `sys.exit` aborts one now and then, and with it a job that is whole: a thread of
    gloo that still holds the tensors of the last message wants the interpreter's lock to free them, while the
    interpreter ends (torch 2.13; pytorch/pytorch#190489). Destroying the process group does not help:
    DistributedDataParallel keeps it, and freeing that as well waits for the thread while holding the lock.
    """
    if dist.is_available() and dist.is_initialized() and "gloo" in dist.get_backend():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
