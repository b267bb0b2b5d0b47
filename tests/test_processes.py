import subprocess
import sys

import pytest

PROGRAM = """
import atexit
import sys
import torch.distributed as dist
from dnabert2.processes import leave

class Unfreed:
    def __del__(self):
        print("interpreter ended")

kept = Unfreed()
if {several}:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(print, "said goodbye")
sys.stdout.write("no end of line; ")
leave(3)
"""


@pytest.mark.parametrize("several", [False, True])
def test_leave_keeps_code_output_and_exit_functions(several):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(several=several)], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("no end of line; said goodbye\n")
    # With gloo nothing of the interpreter is taken down, whose locks its threads may be waiting for.
    assert ("interpreter ended" in done.stdout) == (not several)
