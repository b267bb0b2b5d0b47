"""Fine-tune a sequence classifier on tables of DNA.

    dnabert2 finetune --model_name_or_path mini --data_path data/gue/prom/prom_core_tata --output_dir runs/tata
    dnabert2 finetune training/recipes/demo-scratch.json      # a small network from scratch, a minute on two CPU cores
    torchrun --nproc_per_node 4 -m dnabert2.training.finetune --model_name_or_path M --data_path D --output_dir O

`--data_path` holds train, dev and test tables with the columns sequence (sequence2 for pairs) and label: classes,
several yes-or-no labels, numbers, or one label a base. Every option of transformers' `TrainingArguments` works, and
one lone .json or .yaml file is a whole configuration. `--output_dir` receives the model as a folder that loads like a
Hub repository, `metrics.json`, `predictions.parquet` and plots. An interrupted run, started again, continues from its
last checkpoint.
"""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from ..architectures.adapters import add_lora, freeze_backbone, trainable
from ..architectures.encoding import fit_tokenizer, max_tokens
from ..architectures.models import architecture_of, load_any_tokenizer, load_classifier
from ..architectures.rows import Architecture, match_architecture
from ..bundled import locate
from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError, run_verb
from ..genome.base_map import longest_token, scatter_base_logits, token_spans
from ..genome.table_formats import Source
from ..loading import load_model
from ..modeling_dnabert2 import DNABert2ForSequenceClassification, DNABert2ForTokenClassification
from ..processes import from_main, leave
from ..provenance import provenance
from ..tokenizer.files import OURS, load_tokenizer
from ..tokenizer.policy import PolicyReport, TextPolicy
from .examples import Collator, Examples, NextEpoch, encode_tables
from .finetune_arguments import (
    Arguments,
    DataArguments,
    FineTuningArguments,
    ModelArguments,
    choose_best_by,
    parse_arguments,
    share_out,
)
from .finetune_results import save_run
from .finetuner import DeadRun, FineTuner
from .model_settings import new_config
from .problems import Problem, problem_of
from .progress import score_line, use_lines
from .runs import check_output, make_output, read_restarts, run_settings, start_output, write_restarts
from .tables import Table, find_tables, read_table


def build_model(args: ModelArguments, problem: Problem, architecture: Architecture, tokenizer) -> nn.Module:
    """
    The classifier, new or loaded, or with adapters; set the seed before: its head is random either way.

    Raises:
        UserError: if it cannot be built or does not fit the tokenizer.
    """
    settings = {}
    if args.pooling is not None:
        settings["classifier_pooling"] = args.pooling
    per_base = problem.kind == "base_classification"
    if per_base:
        settings["bases_per_token"] = longest_token(tokenizer)
    backend = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    labels = {**problem.labels, "problem_type": problem.problem_type}
    name = args.model_name_or_path
    if architecture.code != "ours" and (per_base or args.pooling is not None):
        option = "--problem_type base_classification" if per_base else "--pooling"
        raise UserError(f"{name}: {option} is for DNABERT-2 models; a {architecture.name} brings its own head.")
    if name is None:
        model_class = DNABert2ForTokenClassification if per_base else DNABert2ForSequenceClassification
        config = new_config(DNABert2Config, args.config_overrides, vocab_size=len(tokenizer), **labels, **settings)
        try:
            model = model_class._from_config(config, dtype=torch.float32, **backend)
        except (ImportError, ValueError) as error:
            raise UserError(f"--attn_implementation {args.attn_implementation}: {error}") from error
    elif per_base:
        model = load_model("DNABert2ForTokenClassification", name, **labels, **settings, **backend)
    else:
        model = load_classifier(
            name,
            architecture,
            problem_type=problem.problem_type,
            labels=problem.labels,
            trust_remote_code=args.trust_remote_code,
            **settings,
            **backend,
        )
    fit_tokenizer(tokenizer, model)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {len(tokenizer) - 1}, but the model's vocabulary ends at "
            f"{model.config.vocab_size - 1}; give the tokenizer this model was trained with."
        )
    if args.freeze_backbone:
        freeze_backbone(model, architecture)
    if args.lora:
        model = add_lora(
            model,
            architecture,
            rank=args.lora_r,
            alpha=args.lora_alpha,
            dropout=args.lora_dropout,
            targets=args.lora_target_modules,
        )
    return model


def finetune(argv: list[str]) -> dict:
    """Body of the verb; returns what `metrics.json` holds."""
    return run(parse_arguments(argv, __doc__.split("\n\n")[0]))


def run(arguments: Arguments) -> dict:
    """
    Fine-tune as the options say; writes the output folder.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: for tables, a model or options that cannot be used.
    """
    model_args, data_args, args = arguments
    output = Path(args.output_dir)
    is_main = args.process_index == 0  # asking starts the process group, if there are several
    if args.device.type == "cpu":
        # One of several processes calls it cpu:1 with transformers 4, a name that torch.load does not know.
        vars(args)["_setup_devices"] = torch.device("cpu")
    sources = find_tables(data_args.data_path)
    _refuse_own_output(output, model_args, data_args)
    # The tables themselves, not only their names: a run does not go on with other rows than it began with.
    settings = run_settings(model_args, data_args, args) | {"tables_sha256": checksums(sources)}
    checkpoint, restarts = from_main(lambda: _earlier(settings, output, data_args.overwrite), args)
    if not sys.stderr.isatty():
        args.disable_tqdm = True
        logging.disable_progress_bar()
    share_out(args)

    policy = TextPolicy(not data_args.keep_case, not data_args.keep_u, data_args.iupac, data_args.n)
    report = PolicyReport(policy=policy)
    tables = read_tables(sources, data_args, policy, report)
    per_base = data_args.problem_type == "base_classification"
    problem = problem_of(tables["train"], data_args.problem_type, data_args.class_names)
    choose_best_by(args, problem.default_metric, problem.scores)
    if "dev" not in tables:
        _without_dev(args)
    architecture, tokenizer = _architecture_and_tokenizer(model_args)
    first_seed = args.seed
    args.seed = first_seed + len(restarts)
    set_seed(args.seed)  # before the model: its new layers are random
    model = build_model(model_args, problem, architecture, tokenizer)
    examples, truncations = encode_tables(
        tables,
        problem,
        tokenizer,
        architecture,
        report,
        max_length=_limit(data_args, architecture, model),
        allow_truncation=data_args.allow_truncation,
        bases_per_token=model.config.bases_per_token if per_base else None,
        token_types=not data_args.no_token_types,
        rc_augment=data_args.rc_augment,
        rc_average=data_args.rc_average,
        seed=first_seed,
    )
    if is_main:
        print(report.describe())
        print("; ".join(f"{split}: {found.describe()}" for split, found in truncations.items()))
        source = model_args.model_name_or_path or "new, random weights"
        print(
            f"{sum(p.numel() for p in model.parameters()):,} parameters from {source}, {trainable(model):,} of "
            f"them trained; {len(tables['train'].sequences):,} training rows, {args.global_batch_size} a step."
        )
    make_output(output)
    start = time.perf_counter()
    while True:
        may_restart = len(restarts) < args.plateau_restarts and "dev" in tables
        trainer = make_trainer(model, args, problem, tokenizer, tables, examples, data_args, may_restart)
        use_lines(trainer, with_bar=not args.disable_tqdm, line=score_line)
        if is_main:
            if checkpoint:
                print(f"continuing from {checkpoint}")
            else:
                start_output(settings, output)
                write_restarts(restarts, output)
        trainer.accelerator.wait_for_everyone()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
            break
        except DeadRun as dead:
            restarts = [*restarts, {"seed": args.seed, "reason": str(dead)}]
            if is_main:
                print(f"seed {args.seed}: {dead}; starting anew with seed {args.seed + 1}.", flush=True)
        checkpoint, args.seed = None, args.seed + 1
        set_seed(args.seed)
        model = build_model(model_args, problem, architecture, tokenizer)
    found = {
        # Of all attempts since this start, not of those before an interruption.
        "train_seconds": round(time.perf_counter() - start, 1),
        "seed": args.seed,
        "restarts": restarts,
        "problem_type": problem.kind,
        "classes": list(problem.names),
        "trained_parameters": trainable(trainer.model),
        "rows": {split: len(table.sequences) for split, table in tables.items()},
        "truncation": {split: vars(found) for split, found in truncations.items()},
        "rc_average": data_args.rc_average,
        "text": report.describe(),
        "provenance": provenance(args.device.type),
    }
    return save_run(trainer, tables, examples, model_args, architecture, found)


def _earlier(settings: dict, output: Path, overwrite: bool) -> tuple[str | None, list[dict]]:
    """The checkpoint to go on from, and the restarts of the run that it belongs to."""
    checkpoint = check_output(settings, output, overwrite)
    return checkpoint, read_restarts(settings, output)


def checksums(sources: dict[str, Source]) -> dict[str, str | None]:
    """The sha256 of each table's file; None of a Hub dataset's."""
    return {
        split: None if source.path is None else hashlib.sha256(source.path.read_bytes()).hexdigest()
        for split, source in sources.items()
    }


def _refuse_own_output(output: Path, model_args: ModelArguments, data_args: DataArguments):
    for option, name in (
        ("model_name_or_path", model_args.model_name_or_path),
        ("tokenizer_name", model_args.tokenizer_name),
        ("data_path", data_args.data_path),
    ):
        if name is not None and Path(locate(name)).resolve() == output.resolve():
            raise UserError(f"--output_dir {output}: is the folder of --{option}; choose another one.")


def read_tables(
    sources: dict[str, Source], args: DataArguments, policy: TextPolicy, report: PolicyReport
) -> dict[str, Table]:
    """The tables by split; raises UserError where they cannot be used."""
    tables = {}
    for split, source in sources.items():
        tables[split] = read_table(
            source,
            policy,
            report,
            sequence_column=args.sequence_column,
            pair_column=args.pair_column,
            label_columns=args.label_columns,
            per_base=args.problem_type == "base_classification",
        )
        if (tables[split].pairs is None) != (tables["train"].pairs is None):
            raise UserError(f"{tables[split].path}: the tables must all have the column {args.pair_column}, or none.")
    return tables


def _limit(args: DataArguments, architecture: Architecture, model: nn.Module) -> int | None:
    most = max_tokens(architecture, model.config)
    if args.max_length is not None and most is not None and args.max_length > most:
        raise UserError(f"--max_length {args.max_length}: the model takes at most {most} tokens; give at most that.")
    return args.max_length or most


def _without_dev(args: FineTuningArguments):
    if args.early_stopping_patience is not None:
        raise UserError("--early_stopping_patience needs a dev table to evaluate on; add one or leave it out.")
    args.eval_strategy, args.load_best_model_at_end = "no", False


def _architecture_and_tokenizer(args: ModelArguments) -> tuple[Architecture, PreTrainedTokenizerBase]:
    name = args.model_name_or_path
    if name is None:
        return match_architecture("", {"model_type": DNABert2Config.model_type}), load_tokenizer(
            args.tokenizer_name or OURS
        )
    architecture = architecture_of(name, args.trust_remote_code)
    return architecture, load_any_tokenizer(args.tokenizer_name or name, architecture, args.trust_remote_code)


def make_trainer(
    model: nn.Module,
    args: FineTuningArguments,
    problem: Problem,
    tokenizer,
    tables: dict[str, Table],
    examples: dict[str, Examples],
    data_args: DataArguments,
    may_restart: bool,
) -> FineTuner:
    """The Trainer of one attempt."""
    weights = None
    if data_args.class_weights == "balanced":
        if problem.kind == "regression":
            raise UserError("--class_weights balanced is for classes, not for regression; leave it out.")
        train = examples["train"]
        weights = problem.weights(train.targets if train.base_labels is None else train.base_labels)
    callbacks = [NextEpoch(examples["train"])]
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    try:
        return FineTuner(
            model=model,
            args=args,
            problem=problem,
            class_weights=weights,
            to_rows=_base_rows(tables, examples, tokenizer) if problem.kind == "base_classification" else None,
            plateau_patience=args.plateau_patience if may_restart else None,
            train_dataset=examples["train"],
            eval_dataset=examples.get("dev"),
            data_collator=Collator(tokenizer),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    except RuntimeError as error:
        if "installed" not in str(error):
            raise
        raise UserError(f"--report_to {' '.join(args.report_to)}: {error}") from error  # a logger that is not there


def _base_rows(tables: dict[str, Table], examples: dict[str, Examples], tokenizer):
    """A function of a batch's logits and rows, that gives each base the output of its place in its token."""
    spans = {id(examples[split]): token_spans(tokenizer, table.sequences) for split, table in tables.items()}
    lengths = {id(examples[split]): [len(s) for s in table.sequences] for split, table in tables.items()}

    def to_rows(examples: Examples, logits: np.ndarray, rows: list[int]) -> list[np.ndarray]:
        own, bases = spans[id(examples)], lengths[id(examples)]
        return [
            scatter_base_logits(values[: len(own[row])], own[row], bases[row])
            for values, row in zip(logits, rows, strict=True)
        ]

    return to_rows


def main(argv: list[str] | None = None) -> int:
    return run_verb(finetune, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    leave(main())
