"""What is said while work goes on: bars on a terminal, and none in a log file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_unless_terminal():
    """Switch the progress bars of transformers and of the Hub's client off where standard error is no terminal."""
    if sys.stderr.isatty():
        return
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()


@contextmanager
def no_loading_report() -> Iterator[None]:
    """For callers that look at a checkpoint's missing weights themselves: transformers says nothing of them."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
