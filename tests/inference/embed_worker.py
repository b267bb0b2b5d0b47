"""
`dnabert2 embed` in chunks of five records, started by `test_jobs.py`: notes the chunks it works on, and dies in one.

The file CHUNKS_NOTED gets the number of each; in chunk DIES_IN the process kills itself, its file half written.
"""

import os
import signal
import sys
from functools import partial

from dnabert2.inference import embed
from dnabert2.inference.jobs import Job


class WatchedJob(Job):
    def _do(self, number, chunk, work):
        def watched(records, collect):
            with open(os.environ["CHUNKS_NOTED"], "a") as notes:
                notes.write(f"{number}\n")
            for table in work(records, collect):
                yield table
                if os.environ.get("DIES_IN") == str(number):
                    os.kill(os.getpid(), signal.SIGKILL)

        super()._do(number, chunk, watched)


if __name__ == "__main__":
    embed.Job = partial(WatchedJob, chunk_records=5)
    sys.exit(embed.main())
