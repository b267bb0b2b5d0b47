"""How every verb fails: a sentence and exit code 2 for what the user can mend, a traceback for our own faults."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and how to mend it."""


class RunFailed(Exception):
    """Work that cannot go on, through no fault of the input's form: one sentence that says where, and what is left."""


def run_verb(function: Callable, *args) -> int:
    """
    Call `function(*args)` as the body of a command.

    Returns:
        0 if it returns, 2 with `error: ...` on standard error for a `UserError`, 1 with the same for a `RunFailed`,
        130 if interrupted. Anything else is a defect of ours and is raised (Python then exits with 1).
    """
    try:
        function(*args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
