"""Does a model read sequences longer than it was trained on? Bits per base of held-out sequence against length.

    dnabert2 bench length --model runs/mini --corpus runs/mini-corpus --output benchmarks/results/length.json
    dnabert2 bench length --model runs/smoke --input chr20.fa --lengths 128 512 --stretches 2          # CPU-sized

The same tokens of the same stretches are masked and scored at every length (`stretches.cut`), so that lengths differ
in nothing but how much sequence stands around a token. ALiBi promises no loss there (Press et al. 2022). A model with
a table of positions cannot be asked beyond its end, which is recorded.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from transformers.utils.logging import disable_progress_bar

from ..errors import UserError
from ..precision import resolve_dtype
from ..provenance import provenance
from ..tokenizer.files import load_tokenizer
from ..training.corpus_stream import Corpus
from ..training.evaluation import Sums, score_held_out
from ..training.learned_positions import LearnedPositionsConfig, TooLong, load_masked_lm
from . import tables
from .length_plot import plot_length
from .measure import GateError
from .output import check_output, save
from .stretches import MaskedStretches, Stretch, all_of, cut, held_out_sources, mask_stretches, read_stretches
from .variants import check_device

__all__ = ["GateError", "run"]


def run(options: argparse.Namespace) -> None:
    """
    The benchmark, with the options of `benchmarks.options`; prints a table, writes `--output` and a plot beside it.

    Raises:
        UserError: for options, models or sequence that cannot be used.
    """
    device = check_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    lengths = _check(options)
    labels = _labels(options.model)
    corpus = Corpus.open(options.corpus) if options.corpus else None
    if not sys.stderr.isatty():
        disable_progress_bar()
    models = [load_masked_lm(name, dtype=dtype).eval() for name in options.model]
    tokenizer = _common_tokenizer(options.model, corpus)
    sources = held_out_sources(corpus, options.input) if corpus else all_of(options.input)
    stretches = read_stretches(sources, tokenizer, lengths[-1] - 2, options.stretches, options.seed)
    masked = mask_stretches(stretches, tokenizer, options.mlm_probability, options.seed)
    if not (masked.labels >= 0).any(axis=1).all():
        raise UserError(f"--mlm_probability {options.mlm_probability}: leaves a stretch without a masked token.")

    result = {
        "benchmark": "length",
        "lengths": lengths,
        "mlm_probability": options.mlm_probability,
        "seed": options.seed,
        "dtype": str(dtype).removeprefix("torch."),
        "data": _describe(corpus, sources, stretches, masked),
        "models": [],
        "complete": False,
        "provenance": provenance(device),
    }
    groups = [stretch.group for stretch in stretches]
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(models) * len(lengths))
        for label, model in zip(labels, models, strict=True):
            result["models"].append({"model": label, **_describe_model(model), "results": []})
            model.to(device)
            first = None
            for length in lengths:
                progress.update(task, description=f"{label}, {length}")
                row, values = _measure(model, masked, length, tokenizer, options.batch_tokens, device)
                if values is not None:
                    first = values if first is None else first
                    row |= _all_scores(values, first, groups)
                result["models"][-1]["results"].append(row)
                save(result, options.output)  # a run that is cut short leaves what it has measured
                progress.advance(task)
            model.to("cpu")
    result["complete"] = True
    save(result, options.output)
    if options.output:
        plot_length(result, options.output.with_suffix(".png"))
    print(tables.length(result))


def _check(options: argparse.Namespace) -> list[int]:
    lengths = sorted(set(options.lengths))
    if lengths[0] < 3:
        raise UserError(f"--lengths {lengths[0]}: must be at least 3, for [CLS], a token and [SEP].")
    for name in ("stretches", "batch_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    if not 0 < options.mlm_probability < 1:
        raise UserError(f"--mlm_probability {options.mlm_probability}: must be between 0 and 1.")
    if options.seed < 0:
        raise UserError(f"--seed must be at least 0, not {options.seed}.")
    if not options.corpus and not options.input:
        raise UserError("give --corpus, whose held-out records are read, or FASTA files with --input.")
    check_output(options.output)
    return lengths


def _labels(names: list[str]) -> list[str]:
    """Names for the result: of a folder its last part, since where it is on this machine is nobody's business."""
    labels = [Path(name).resolve().name if Path(name).is_dir() else name for name in names]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--model: two of them are called {label}; rename one folder, the table needs names.")
    return labels


def _common_tokenizer(names: list[str], corpus: Corpus | None):
    """The one tokenizer of all; lengths are in tokens, and bits per base include where tokens end."""
    source = corpus.tokenizer_source() if corpus else names[0]
    tokenizer = load_tokenizer(source)
    for name in names:
        if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{name}: has another tokenizer than {corpus.name if corpus else source}; measure it alone."
            )
    return tokenizer


def _describe(corpus, sources, stretches: list[Stretch], masked: MaskedStretches) -> dict:
    groups = [stretch.group for stretch in stretches]
    is_masked = masked.labels >= 0
    manifest = json.dumps(corpus.manifest, sort_keys=True) if corpus else None
    return {
        "corpus": Path(corpus.name).name if corpus else None,
        "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest() if corpus else None,
        "files": [{"file": Path(source.path).name, "sha256": source.sha256} for source in sources],
        "stretches_by_group": {group: groups.count(group) for group in sorted(set(groups))},
        "groups_without_a_stretch": sorted({source.group for source in sources} - set(groups)),
        "masked_tokens": int(is_masked.sum()),
        "masked_bases": int(masked.token_bases[masked.labels[is_masked]].sum()),
        "stretches": [
            {key: getattr(stretch, key) for key in ("group", "species", "accession", "start")} for stretch in stretches
        ],
    }


def _describe_model(model) -> dict:
    rows = getattr(model.config, "max_position_embeddings", None)
    is_learned = model.config.model_type == LearnedPositionsConfig.model_type
    return {
        "positions": f"{rows:,} learned" if is_learned else "ALiBi",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": model.config._attn_implementation,
    }


def _measure(model, masked, length, tokenizer, batch_tokens, device) -> tuple[dict, torch.Tensor | None]:
    """What is known of a length without another, and (stretches, 4) sums as in `Sums`; None if the model cannot."""
    pieces = cut(masked, length, tokenizer, model.config.vocab_size)
    start = time.perf_counter()
    try:
        values = score_held_out(model, pieces, max(1, batch_tokens // length), device).values
    except TooLong as error:
        return {"length": length, "status": "cannot", "reason": str(error)}, None
    seconds = time.perf_counter() - start
    speed = {"seconds": round(seconds, 3), "tokens_per_second": round(pieces.inputs.numel() / seconds, 1)}
    return {"length": length, "status": "measured", "reason": None, **speed}, values


def _all_scores(values: torch.Tensor, first: torch.Tensor, groups: list[str]) -> dict:
    """Scores over all, and by group; `values` and `first` (stretches, 4), of this length and of the smallest."""
    assert torch.equal(values[:, 2:], first[:, 2:]), "another length has scored other tokens"
    by_group = {}
    for group in sorted(set(groups)):
        is_member = torch.tensor([name == group for name in groups])
        by_group[group] = scores(values[is_member], first[is_member])
    return {**scores(values, first), "groups": by_group}


def scores(values: torch.Tensor, first: torch.Tensor) -> dict:
    """
    Args:
        values, first: (stretches, 4) float64 sums of nats, right guesses, tokens and bases, at a length and at the
            smallest, of the same tokens.

    Returns:
        `loss` (nats a token), `accuracy` and `bits_per_base`; `difference` in bits per base to the smallest length;
        its `standard_error` by stretches, each paired with itself: that of a ratio of sums (Cochran 1977, section
        2.11), None for a single stretch. Stretches of one chromosome are taken as independent.
    """
    bases = values[:, 3]
    change = (values[:, 0] - first[:, 0]) / math.log(2)
    difference = float(change.sum() / bases.sum())
    count, error = len(values), None
    if count > 1:
        residual = change - difference * bases
        error = float((residual.square().sum() * count / (count - 1)).sqrt() / bases.sum())
    return {**Sums(["all"], values.sum(0)[None]).metrics(), "difference": difference, "standard_error": error}
