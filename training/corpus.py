"""Build a pretraining corpus: genomes in, shuffled Parquet shards of tokens with coordinates out.

    dnabert2 build-corpus --input genomes/ --output corpus
    dnabert2 build-corpus --input chr21.fa.gz --held_out_share 0 --output corpus      # seconds on a CPU

`--output` receives `train/*.parquet` and `validation/*.parquet`, each a random sample of the whole, with the columns
input_ids (without [CLS] and [SEP]), species, group, accession, start, end and strand; the tokenizer; `manifest.json`,
written last, with sources, checksums, policy and counts; and a dataset card, so that the folder is a Hub dataset as it
stands. Whole records are held out, never windows of a record that also trains. Memory holds one record and one part
(about `--part_bases`) a process. Interrupted at any moment, the same command continues.
"""

import errno
import json
import os
import shutil
import signal
import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread

from ..atomic import write_whole
from ..errors import UserError, run_verb
from ..provenance import provenance
from ..tokenizer.files import OURS, load_tokenizer, write_tokenizer
from .arguments import parse_options
from .corpus_card import corpus_card
from .corpus_parts import PartPolicy, plan_parts, read_parts, write_part
from .corpus_shards import FORMAT, add_counts, write_shard
from .corpus_sources import SPLITS, Source, find_sources, hold_out, parse_weights, passes_by_group, scan_all
from .corpus_windows import BASES_PER_TOKEN, WindowPolicy

WORK = ".work"  # parts, and the plan they follow, until the corpus is whole
LARGEST_SHARDS = 1024


@dataclass
class CorpusArguments:
    """What becomes of the genomes."""

    input: list[str] | None = field(default=None, metadata={"help": "FASTA files (also .gz) or folders of them."})
    output: str | None = field(default=None, metadata={"help": "Folder of the corpus."})
    tokenizer: str = field(default=str(OURS), metadata={"help": "Tokenizer folder, tokenizer.json or Hub id."})
    table: str | None = field(
        default=None,
        metadata={"help": "Tab-separated table with the columns file, species, group, and split to hold files out."},
    )
    group_column: str = field(default="group", metadata={"help": "Column of --table that holds the group."})
    window_tokens: int = field(
        default=126, metadata={"help": "Tokens of a window; [CLS] and [SEP] come to it when training."}
    )
    min_tokens: int = field(default=16, metadata={"help": "Shorter windows, at the ends of stretches, are left out."})
    n: str = field(
        default="split", metadata={"help": "N: cut there, or keep it as [UNK].", "choices": ["split", "keep"]}
    )
    soft_mask: str = field(
        default="upper",
        metadata={"help": "Lower case: read as upper, or leave that sequence out.", "choices": ["upper", "split"]},
    )
    passes: float = field(default=1.0, metadata={"help": "Bases of the corpus, in times of the training genomes'."})
    balance: float = field(
        default=0.5, metadata={"help": "Exponent of a group's size in its share: 1 as they are, 0 all groups equal."}
    )
    group_weights: str | None = field(
        default=None, metadata={"help": "Factors of groups' shares: bacteria=0.5,plant=2; 0 leaves one out."}
    )
    max_passes: float = field(default=8.0, metadata={"help": "No group is read more often than this."})
    reverse_complement: float = field(default=0.5, metadata={"help": "Share of chunks read from the other strand."})
    held_out: list[str] | None = field(
        default=None,
        metadata={"help": "Accessions, species, species:accession or file names to hold out; * and ? are wild."},
    )
    held_out_share: float = field(
        default=0.02,
        metadata={
            "help": "Share of each group's bases to hold out in whole records, if nothing else decides; 0: none."
        },
    )
    shards: int | None = field(
        default=None, metadata={"help": "Training shards; by default a power of two with about 4M tokens in each."}
    )
    part_bases: int | None = field(default=None, metadata={"help": "Bases of a unit of work; by default 4M and up."})
    seed: int = field(default=0, metadata={"help": "Of strands, phases and the shuffle."})
    workers: int | None = field(default=None, metadata={"help": "Processes; by default one a core."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is in --output."})


def build_corpus(argv: list[str]):
    """Body of the verb."""
    (args,) = parse_options((CorpusArguments,), argv, __doc__.split("\n\n")[0])
    check_arguments(args)
    output = Path(args.output)
    workers = args.workers or len(os.sched_getaffinity(0))
    # Not fork: threads of pyarrow and tokenizers would be copied in whatever state they are.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            _build(args, output, pool, workers)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; finished parts are kept: start the same command "
            "again, with fewer --workers or smaller --part_bases."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise UserError(
            f"{error.filename or output}: {os.strerror(error.errno)}; what is finished is whole and is kept: make "
            "room or permit writing, and start the same command again."
        ) from error


def check_arguments(args: CorpusArguments):
    """Raise UserError for values that no corpus can be built with."""
    if not args.input:
        raise UserError("--input is missing: FASTA files, or folders of them.")
    if args.output is None:
        raise UserError("--output is missing: the folder of the corpus.")
    if not 1 <= args.min_tokens <= args.window_tokens:
        raise UserError(f"--min_tokens {args.min_tokens}: must be from 1 to --window_tokens {args.window_tokens}.")
    if not 0 <= args.reverse_complement <= 1 or not 0 <= args.held_out_share < 1:
        raise UserError("--reverse_complement is a share from 0 to 1, --held_out_share one below 1.")
    if not args.passes > 0 or not args.max_passes > 0 or args.balance < 0:
        raise UserError("--passes and --max_passes must be above 0, --balance at least 0.")
    if args.seed < 0 or (args.part_bases is not None and args.part_bases < 1):
        raise UserError("--seed must be at least 0, --part_bases at least 1.")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least one process is needed.")
    if args.shards is not None and not 1 <= args.shards <= LARGEST_SHARDS:
        raise UserError(f"--shards {args.shards}: must be from 1 to {LARGEST_SHARDS}.")


def _start_worker():
    # One thread a process: the processes are the parallelism. Ctrl-C is the parent's to handle.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed leaves its workers waiting for ever.
    sentinel = parent_process().sentinel
    Thread(target=lambda: (connection.wait([sentinel]), os._exit(1)), daemon=True).start()


def _build(args: CorpusArguments, output: Path, pool: Executor, workers: int):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    settings = {k: v for k, v in asdict(args).items() if k not in ("output", "workers", "overwrite")}
    if is_whole(output, settings, args.overwrite):
        print(f"{output}: already holds this corpus.")
        return
    sources = find_sources(args.input, args.table, args.group_column)
    tokenizer = load_tokenizer(args.tokenizer)
    if len(tokenizer) > 2**16:
        raise UserError(f"{args.tokenizer}: has {len(tokenizer):,} entries; a corpus holds ids below 65,536.")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=len(sources))
        sources = scan_all(sources, pool, lambda _: progress.advance(task))
        unheld = hold_out(sources, args.held_out or [], args.held_out_share)
        sizes = Counter()
        for source in sources:
            sizes[source.group] += sum(record.bases for record in source.records if record.split == "train")
        passes = passes_by_group(sizes, args.passes, args.balance, parse_weights(args.group_weights), args.max_passes)
        plan, policy = _plan(args, sources, sizes, passes)
        work = output / WORK
        start_work(work, settings, sources)
        parts = [work / f"part-{number:05d}.parquet" for number in range(len(plan))]
        wanted = {number for number, path in enumerate(parts) if not path.exists()}
        task = progress.add_task("tokenising", total=len(plan), completed=len(plan) - len(wanted))
        jobs = ((parts[n], chunks, policy) for n, chunks in read_parts(sources, plan, wanted, passes))
        for _ in _run(pool, write_part, jobs, 2 * workers):
            progress.advance(task)
        task = progress.add_task("shuffling", total=sum(policy.shards))
        done = []
        for shard in _run(pool, partial(_finish_shard, parts, output, args.seed), _shard_jobs(policy), 2 * workers):
            done.append(shard)
            progress.advance(task)
    splits = {
        split: sorted((s for s in done if s["file"].startswith(split)), key=lambda s: s["file"]) for split in SPLITS
    }
    if not add_counts(splits["train"])["rows"]:
        raise UserError(
            f"{output}: not one window to train on; raise --passes ({args.passes:g} here), by which stretches of "
            f"sequence are left out, or lower --min_tokens ({args.min_tokens})."
        )
    write_tokenizer_beside(args.tokenizer, tokenizer, output)
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "tokenizer": {"vocab_size": len(tokenizer), "folder": "tokenizer"},
        "splits": {split: {**add_counts(shards), "shards": shards} for split, shards in splits.items() if shards},
        "passes": {group: round(value, 4) for group, value in sorted(passes.items())},
        "without_validation": unheld,
        "sources": [source.to_dict() for source in sources],
        "provenance": provenance(),
    }
    write_whole(output / "README.md", corpus_card(manifest))
    write_whole(output / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(work)
    print(describe(manifest, output))


def _plan(args: CorpusArguments, sources: list[Source], sizes: Counter, passes: dict[str, float]):
    held = sum(record.bases for source in sources for record in source.records if record.split == "validation")
    train = sum(sizes[group] * times for group, times in passes.items())
    shards = args.shards or _shard_count(train, least=16)
    part_bases = args.part_bases or min(max(4_000_000, (held + sum(sizes.values())) // 512), 256_000_000)
    windows = WindowPolicy(args.tokenizer, args.window_tokens, args.min_tokens, args.n, args.soft_mask)
    policy = PartPolicy(
        windows, (shards, _shard_count(held, least=1) if held else 0), args.reverse_complement, args.seed
    )
    return plan_parts(sources, part_bases), policy


def _shard_count(bases: float, least: int) -> int:
    # Powers of two, so that any usual number of processes gets equally many.
    count = least
    while count < LARGEST_SHARDS and bases / BASES_PER_TOKEN / count > 4_000_000:
        count *= 2
    return count


def _run(pool: Executor, function, jobs, most: int):
    """Results of `function(*job)` on the pool, as they come, with at most `most` jobs in memory."""
    pending = set()
    try:
        for job in jobs:
            pending.add(pool.submit(function, *job))
            while len(pending) >= most:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        for future in pending:
            future.cancel()


def _shard_jobs(policy: PartPolicy):
    for split, first, count in zip(SPLITS, (0, policy.shards[0]), policy.shards, strict=True):
        yield from ((split, first, i, count) for i in range(count))


def _finish_shard(parts: list[Path], output: Path, seed: int, split: str, first: int, index: int, count: int) -> dict:
    path = output / split / f"{split}-{index:05d}-of-{count:05d}.parquet"  # as the Hub names shards
    record = output / WORK / f"{path.stem}.json"  # written after the shard, so that one that is there is whole
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    counts = write_shard(parts, first + index, path, seed)
    write_whole(record, json.dumps(counts))
    return counts


def is_whole(output: Path, settings: dict, overwrite: bool) -> bool:
    """
    Whether `output` holds the corpus of these settings, whole; clears what `overwrite` gives up.

    Raises:
        UserError: if something else is in the way, or the sources are not what they were.
    """
    if output.is_file():
        raise UserError(f"{output}: is a file; give a folder.")
    manifest, plan = output / "manifest.json", output / WORK / "plan.json"
    if overwrite and (manifest.is_file() or plan.is_file()):
        manifest.unlink(missing_ok=True)  # first: it says that the rest is whole
        (output / "README.md").unlink(missing_ok=True)
        for old in (*SPLITS, "tokenizer", WORK):
            shutil.rmtree(output / old, ignore_errors=True)
    for path, state in ((manifest, "a corpus"), (plan, "an unfinished corpus")):
        if not path.is_file():
            continue
        earlier = _read_json(path)
        changed = sorted(k for k in settings | earlier["settings"] if settings.get(k) != earlier["settings"].get(k))
        if changed:
            raise UserError(
                f"{output}: holds {state} of other settings ({', '.join(changed[:5])}); choose another --output or "
                "add --overwrite."
            )
        if path == manifest:
            _refuse_other_files(output, earlier, settings)
            shutil.rmtree(output / WORK, ignore_errors=True)  # if it was killed between the two
        return path == manifest
    if output.is_dir() and any(output.iterdir()) and not (output / WORK).is_dir():
        raise UserError(f"{output}: is not empty, and holds no corpus; choose another --output.")
    return False


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["settings"], content["sources"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged, or not of a corpus; choose another --output.") from error
    return content


def _refuse_other_files(output: Path, manifest: dict, settings: dict):
    found = find_sources(settings["input"], settings["table"], settings["group_column"])
    before = {source["path"]: source["bytes"] for source in manifest["sources"]}
    now = {source.path: source.bytes for source in found}
    different = sorted(path for path in before | now if before.get(path) != now.get(path))
    if different:
        raise UserError(
            f"{output}: was built from other files than there are now, {different[0]} the first; choose another "
            "--output or add --overwrite."
        )


def start_work(work: Path, settings: dict, sources: list[Source]):
    """
    Record the plan that the parts follow, or find it unchanged.

    Raises:
        UserError: if the input files are not what they were when this corpus was begun.
    """
    plan = {"settings": settings, "sources": [source.to_dict() for source in sources]}
    path = work / "plan.json"
    if path.is_file():
        if _read_json(path) != plan:
            raise UserError(
                f"{work.parent}: was begun with other input files than there are now; add --overwrite to begin again."
            )
        for partial in work.parent.rglob("*.tmp"):  # of processes that were killed
            partial.unlink()
        return
    work.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(plan) + "\n")


def write_tokenizer_beside(name: str, tokenizer, output: Path):
    """Put the tokenizer's files into the corpus, so that what trains on it has the right one."""
    folder = output / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer(folder / "tokenizer.json", folder)


def describe(manifest: dict, output: Path) -> str:
    """A line a split, and what is held out of which group."""
    lines = []
    for split, counts in manifest["splits"].items():
        groups = ", ".join(f"{name} {group['bases'] / 1e6:.1f} Mb" for name, group in counts["groups"].items())
        lines.append(
            f"{split}: {counts['rows']:,} windows, {counts['tokens']:,} tokens, {counts['bases'] / 1e6:,.1f} Mb in "
            f"{len(counts['shards'])} shards ({groups})"
        )
    if manifest["without_validation"]:
        lines.append(f"nothing is held out of: {', '.join(manifest['without_validation'])}")
    return "\n".join([*lines, f"{output}: whole."])


def main(argv: list[str] | None = None) -> int:
    return run_verb(build_corpus, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
