"""How one of several processes ends."""

import atexit
import os
import sys

import torch.distributed as dist


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
