"""The `gue` verb: one sub-command a part of the benchmark.

dnabert2 gue check --data GUE
"""

import importlib
import sys

# sub-command -> (module, one line)
COMMANDS = {
    "list": ("tasks", "the datasets, and which of them a local copy has"),
    "download": ("download", "fetch the data from a dataset on the Hub"),
    "check": ("check", "verify a local copy: rows, checksums, labels, duplicates, leaks"),
    "run": ("run", "fine-tune models, or train floors, on tasks with several seeds"),
    "sequences": ("sequences", "the training splits as FASTA, to go on pretraining on them"),
    "probe": ("probe", "frozen embeddings under a linear probe"),
    "report": ("report", "tables, page and plot of runs, beside the paper's models"),
}


def usage() -> str:
    lines = ["usage: dnabert2 gue COMMAND [options]", "", "GUE, the Genome Understanding Evaluation.", "", "commands:"]
    lines += [f"  {name:<11} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "`dnabert2 gue COMMAND --help` lists its options and their defaults."])


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a command."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if argv else 2)  # as argparse does in the other verbs
    if argv[0] not in COMMANDS:
        print(f"error: gue has no command {argv[0]!r}; `dnabert2 gue --help` lists them.", file=sys.stderr)
        return 2
    return importlib.import_module(f".{COMMANDS[argv[0]][0]}", __package__).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
