"""What frozen embeddings know: a linear classifier on the vectors of any encoder, of all rows or of few.

    dnabert2 gue probe --model mini --data GUE --output runs/probe                                 # all tasks
    dnabert2 gue probe --model kmer-counts random-init:mini --data GUE --tasks mouse/2 --output runs/probe   # seconds

The classifier is logistic regression on standardised features. On all rows its penalty is chosen by cross-validation
within the training table, so that neither dev nor test decides anything; on few rows it is fixed. This is the
protocol by which the field compares models without fine-tuning them (Feng et al., Nature Communications 16:10780,
2025, whose AUROC the table shows beside ours; GENEB, 2026). `kmer-counts` and `random-init:MODEL` are the floors: what
composition alone, and the architecture with random weights, come to.

One JSON a (model, task). What is finished is not probed again, unless weights, data or options are other ones.
"""

import argparse
import json
import os
import statistics
import sys
import warnings
from pathlib import Path

import numpy as np

from ..atomic import write_whole
from ..errors import RunFailed, UserError, run_verb
from ..inference.defaults import POOLINGS
from ..provenance import provenance
from .checksums import tables_sha256
from .embeddings import embed_cached, load_embedder
from .jobs import FIRST_SEED, slug
from .outputs import output_folder
from .records import PROBE, published_auroc
from .tasks import Task, available

FULL = "full"
SCORES = ("auroc", "matthews_correlation", "accuracy")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation tried on all rows
FOLDS = 3
MOST_TUNING_ROWS = 9000
SHOT_STRENGTH = 0.01
MOST_ITERATIONS = 500


def options_of(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dnabert2 gue probe",
        description="Probe frozen embeddings on tasks of GUE with a linear classifier, one JSON a model and task.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="folders, Hub ids, mini, kmer-counts, random-init:MODEL")
    add("--data", type=Path, required=True, help="folder with GUE in its original layout")
    add("--tasks", default="all", help="datasets or tasks, with commas; those that are whole are probed")
    add("--output", type=Path, required=True, help="folder of the records")
    add("--pooling", default="mean", choices=POOLINGS, help="how the vectors of tokens become one")
    add("--shots", default="full,10,1", help="training rows of each class, with commas; full is all of them")
    add("--seeds", type=int, default=5, help="draws of the rows, where not all are taken")
    add("--batch_size", type=int, default=64, help="sequences of one forward pass at most; fewer if they are long")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto: CUDA if there is a GPU")
    add("--dtype", default="float32", help="of the encoder: float32, bfloat16, float16, or auto")
    add("--trust_remote_code", action="store_true", help="run the code of a model's own repository")
    add("--cache", type=Path, default=cache_folder(), help="folder of embeddings, to continue from")
    return parser.parse_args(argv)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dnabert2" / "embeddings"


def run(options: argparse.Namespace):
    """Body of the verb; raises RunFailed at the end if a task could not be probed."""
    from transformers.utils.logging import disable_progress_bar

    shots = parse_shots(options.shots)
    if options.seeds < 1 or options.batch_size < 1:
        raise UserError("--seeds and --batch_size must be at least 1.")
    device = _device(options.device)
    tasks, incomplete = available(options.data, options.tasks)
    for name, missing in incomplete.items():
        print(f"{name} is left out: {' and '.join(missing)} missing below {options.data}.", flush=True)
    if not tasks:
        raise UserError(f"{options.data}: none of the tasks is whole; fetch them with `dnabert2 gue download`.")
    if not sys.stderr.isatty():
        disable_progress_bar()
    failed, probed = [], []
    for model in options.model:
        embedder = load_embedder(
            model,
            pooling=options.pooling,
            batch_size=options.batch_size,
            device=device,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        output_folder(options.output)
        for task in tasks:
            record, path = _attempt(embedder, model, task, shots, device, options)
            (failed if record["status"] == "failed" else probed).append(record | {"path": path})
    print(table(probed))
    if failed:
        raise RunFailed(f"{len(failed)} probes failed; the first is {failed[0]['path']}, which says why.")


def parse_shots(text: str) -> list[int | None]:
    """ "full,10" is [None, 10]."""
    shots = []
    for word in text.split(","):
        if word.strip() != FULL and not (word.strip().isdigit() and int(word) > 0):
            raise UserError(f"--shots {text}: give numbers of rows a class with commas, or full, such as full,10,1.")
        shots.append(None if word.strip() == FULL else int(word))
    return shots


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {' '.join(str(error).split())[:200]}") from error
    return name


def _attempt(embedder, model: str, task: Task, shots, device: str, options) -> tuple[dict, Path]:
    """Probe one task and write its record, whatever comes of it; or read the record that is there."""
    pooling = embedder.identity.get("pooling")  # counts of k-mers have none
    name = model if pooling in ("mean", None) else f"{model} ({pooling})"
    path = options.output / f"{slug(name)}--{task.dataset.replace('/', '_')}--probe.json"
    record = {
        "benchmark": PROBE,
        "model": name,
        "task": task.dataset,
        "status": "finished",
        "error": None,
        "pooling": pooling,
        "parameters": embedder.parameters,
    }
    settings = {
        "encoder": embedder.identity,
        "shots": [shot or FULL for shot in shots],
        "seeds": [FIRST_SEED + i for i in range(options.seeds)],
        "classifier": "logistic regression, L2, standardised features",
        "C": {"full": f"best of {list(STRENGTHS)} by AUROC of {FOLDS}-fold cross-validation on train"}
        | {"few-shot": SHOT_STRENGTH},
    }
    data = {"sha256": tables_sha256(task, options.data)}
    before = _read(path)
    if before and before["settings"] == settings and before["data"]["sha256"] == data["sha256"]:
        print(f"{name}, {task.dataset}: finished already.", flush=True)
        return before, path
    try:
        found = probe(embedder, task, options.data, shots, settings["seeds"], options.cache)
        record |= found | {"data": data | found["data"]}
    except (UserError, OSError, RuntimeError, ValueError, MemoryError) as error:
        # One task must not end the others: it is recorded, reported, and in the exit code.
        record |= {"status": "failed", "error": " ".join(str(error).split()) or type(error).__name__, "data": data}
    record |= {"settings": settings, "provenance": provenance(device)}
    write_whole(path, json.dumps(record, indent=1) + "\n")
    said = record["error"] or ", ".join(
        f"{protocol} {found['auroc']['mean']:.4f}" for protocol, found in record["protocols"].items()
    )
    print(f"{name}, {task.dataset}: {'' if record['error'] else 'AUROC '}{said}", flush=True)
    return record, path


def _read(path: Path) -> dict | None:
    """A finished record, or None."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        finished = record["status"] == "finished" and record["settings"] and record["data"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no record of a probe ({error}); remove it.") from error
    return record if finished else None


def probe(embedder, task: Task, gue: Path, shots: list[int | None], seeds: list[int], cache: Path) -> dict:
    """
    Embed a task's training and test sequences, and score classifiers on the vectors.

    Args:
        shots: rows of each class to train on, None for all of them.
        seeds: of the draws of rows.

    Returns:
        `protocols`, `embed_seconds`, `notes` and `data` of the record.

    Raises:
        UserError: if the task's files or its sequences cannot be used.
    """
    from rich.console import Console
    from rich.progress import Progress

    from .one_run import read_task

    tables, problem = read_task(task, gue)
    rows = {split: len(tables[split].sequences) for split in ("train", "test")}
    embedded = {}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task(f"embedding {task.dataset}", total=sum(rows.values()))
        for split in rows:
            part = tables[split]
            embedded[split] = embed_cached(
                embedder, part.sequences, part.pairs, cache, lambda n: progress.advance(bar, n)
            )
    vectors = {split: part.vectors for split, part in embedded.items()}
    for split, table in vectors.items():
        if not np.isfinite(table).all():
            raise UserError(f"{task.dataset}: embeddings of {split} are not finite; try --dtype float32.")
    labels = {split: np.asarray(problem.targets(tables[split])) for split in rows}
    truncated = sum(part.truncated for part in embedded.values())
    said = f"{truncated} sequences were cut to the {embedder.max_tokens} tokens that the model can take."
    return {
        "protocols": probe_vectors(vectors, labels, len(problem.names), shots, seeds),
        "dimensions": vectors["train"].shape[1],
        "embed_seconds": round(sum(part.seconds for part in embedded.values()), 1),
        "notes": [said] if truncated else [],
        "data": {"rows": rows},
    }


def probe_vectors(
    vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], classes: int, shots: list[int | None], seeds: list
) -> dict[str, dict]:
    """
    Test scores of logistic regression on vectors.

    The features are standardised by all training vectors, in every protocol: sequences are plenty where labels are
    few.

    Args:
        vectors: `train` and `test`, (rows, dimensions).
        labels: (rows,) class ids.

    Returns:
        Protocol ("full", "10-shot", ...) -> score -> `mean`, `standard_deviation` and the values, `seeds`.

    Raises:
        UserError: if a class has no training row.
    """
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels["train"], minlength=classes)
    if not counts.all():
        raise UserError(f"class {int(counts.argmin())} has no training row; the probe needs rows of each.")
    scaler = StandardScaler().fit(vectors["train"])
    train, test = (scaler.transform(vectors[split]) for split in ("train", "test"))
    protocols = {}
    for shot in shots:
        if shot is None:
            C = choose_strength(train, labels["train"])
            runs = [_score(_fit(train, labels["train"], C), test, labels["test"])]
        else:
            runs = []
            for seed in seeds:
                rows = draw_shots(labels["train"], shot, seed)
                runs.append(_score(_fit(train[rows], labels["train"][rows], SHOT_STRENGTH), test, labels["test"]))
        name = FULL if shot is None else f"{shot}-shot"
        protocols[name] = {score: _summary([run[score] for run in runs]) for score in SCORES}
        if shot is None:
            protocols[name]["C"] = C
    return protocols


def draw_shots(labels: np.ndarray, shot: int, seed: int) -> np.ndarray:
    """`shot` rows of each class, or all that it has."""
    draw = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([draw.choice(found, min(shot, len(found)), replace=False) for found in rows])


def choose_strength(features: np.ndarray, labels: np.ndarray) -> float:
    """The C of best mean AUROC over folds of the training rows, of 9,000 of them if there are more."""
    from sklearn.model_selection import StratifiedKFold

    draw = np.random.default_rng(FIRST_SEED)
    rows = draw.permutation(len(labels))[:MOST_TUNING_ROWS]
    if np.bincount(labels[rows])[np.unique(labels)].min() < FOLDS:
        return SHOT_STRENGTH  # a class too rare to stand in each fold
    scores = dict.fromkeys(STRENGTHS, 0.0)
    for inside, outside in StratifiedKFold(FOLDS).split(features[rows], labels[rows]):
        for C in STRENGTHS:
            model = _fit(features[rows[inside]], labels[rows[inside]], C)
            scores[C] += _score(model, features[rows[outside]], labels[rows[outside]])["auroc"]
    return max(scores, key=scores.get)


def _fit(features: np.ndarray, labels: np.ndarray, C: float):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Weak penalties converge slowly and are seldom the best.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, max_iter=MOST_ITERATIONS, tol=1e-3).fit(features, labels)


def _score(model, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from ..training.metrics import classification_scores

    probabilities = model.predict_proba(features)
    return classification_scores(labels, model.classes_[probabilities.argmax(axis=1)], probabilities)


def _summary(values: list[float]) -> dict:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "standard_deviation": spread, "seeds": values}


def table(records: list[dict]) -> str:
    """AUROC x 100 of each model and task, beside the published models'; each model's last line is its mean."""
    published = published_auroc()
    protocols = list(dict.fromkeys(name for record in records for name in record["protocols"]))
    columns = [*protocols, *published]
    widths = [max(len(column), 6) for column in columns]
    name_width = max([len(record["task"]) for record in records] + [4])
    lines = []
    for model in dict.fromkeys(record["model"] for record in records):
        rows = {}
        for record in (record for record in records if record["model"] == model):
            ours = [record["protocols"].get(name, {}).get("auroc", {}).get("mean") for name in protocols]
            rows[record["task"]] = [*ours, *(scores.get(record["task"]) for scores in published.values())]
        known = [[x for x in column if x is not None] for column in zip(*rows.values(), strict=True)]
        if len(rows) > 1:
            rows["mean"] = [statistics.mean(column) if len(column) == len(rows) else None for column in known]
        lines += ["", f"AUROC x 100 of {model}, frozen; to the right published ones, under their own protocol"]
        header = "  ".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))
        lines.append(f"{'task':<{name_width}}  {header}")
        for task, values in rows.items():
            cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
            shown = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append(f"{task:<{name_width}}  {shown}")
    return "\n".join(lines).strip("\n")


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    return run_verb(run, options)


if __name__ == "__main__":
    sys.exit(main())
