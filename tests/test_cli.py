"""The command: dispatch, exit codes, and how long a user waits for help."""

import subprocess
import sys
import time

import pytest

from dnabert2 import cli
from dnabert2.errors import UserError, run_verb


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "dnabert2", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_verb_in_under_half_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0 and min(seconds) < 0.5
    for verb in cli.VERBS:
        assert f"  {verb}" in result.stdout


def test_no_verb_and_an_unknown_verb():
    assert run().returncode == 2
    result = run("pretend")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "'pretend'" in result.stderr


def test_importing_the_package_imports_no_torch():
    code = "import sys, dnabert2; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_exit_codes(capsys):
    def fail():
        raise UserError("x.fa: no such file.")

    def interrupt():
        raise KeyboardInterrupt

    assert run_verb(lambda: None) == 0
    assert run_verb(fail) == 2
    assert capsys.readouterr().err == "error: x.fa: no such file.\n"
    assert run_verb(interrupt) == 130
    with pytest.raises(ZeroDivisionError):
        run_verb(lambda: 1 / 0)
