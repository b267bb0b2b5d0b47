"""The `dnabert2` command: `dnabert2 VERB ...`, each verb the `main(argv)` of one module.

Only the module of the verb at hand is imported, so that `dnabert2 --help` answers at once.
"""

import importlib
import os
import sys

from . import __version__

# verb -> (module, what it does)
VERBS = {
    "train-tokenizer": ("tokenizer.train", "train a byte-pair tokenizer on FASTA files"),
    "build-corpus": ("training.corpus", "make a pretraining corpus of FASTA files"),
    "pretrain": ("training.pretrain", "train a masked language model on a corpus"),
    "finetune": ("training.finetune", "fine-tune a classifier on tables of sequences"),
    "embed": ("inference.embed", "vectors of sequences, tokens or bases"),
    "predict": ("inference.predict", "classes and probabilities of sequences from a fine-tuned model"),
    "score-variants": ("inference.variants", "effects of the variants of a VCF, from likelihoods and vectors"),
    "mutagenesis": ("inference.mutagenesis", "every single-base change of a region, as a matrix and a logo"),
    "ray": ("inference.ray_pipeline", "embed and score-variants on a cluster, over folders of files"),
    "gue": ("gue_eval.main", "GUE, the benchmark: check, run, probe, report"),
    "export": ("hub.export", "build a Hugging Face Hub folder from a checkpoint"),
    "bench": ("benchmarks.main", "measure speed, memory, and what models and tokenizers make of DNA"),
}


def usage() -> str:
    lines = [f"dnabert2 {__version__}: a genome language model", "", "usage: dnabert2 VERB [options]", "", "verbs:"]
    lines += [f"  {verb:<16} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join([*lines, "", "`dnabert2 VERB --help` lists a verb's options and their defaults."])


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a verb; exit code 0 if it worked, 2 for input that cannot be used, 1 for a fault of ours."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if argv[0] not in VERBS:
        print(f"error: there is no verb {argv[0]!r}; `dnabert2 --help` lists them.", file=sys.stderr)
        return 2
    # Must be set before torch loads. OpenMP's waiting threads spin by default: on a machine whose cores are also busy
    # with something else, a small network then trains some twenty times slower (docs/log.md, 2026-11-21).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = importlib.import_module(f".{VERBS[argv[0]][0]}", __package__)
    sys.argv[0] = f"dnabert2 {argv[0]}"  # what argparse prints in its usage line
    return module.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
