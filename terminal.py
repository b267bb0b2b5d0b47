"""What is said while work goes on: bars on a terminal, and none in a log file."""

import sys


def quiet_unless_terminal():
    """Switch the progress bars of transformers and of the Hub's client off where standard error is no terminal."""
    if sys.stderr.isatty():
        return
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
