"""Fine-tune a sequence classifier on tables of DNA.

    dnabert2 finetune --model_name_or_path MODEL --data_path data/gue/prom/prom_core_tata --output_dir runs/tata
    dnabert2 finetune training/recipes/demo.json              # a small network from scratch, minutes on two CPU cores

`--data_path` holds train, dev and test tables (.csv or .tsv) with the columns sequence and label. Every option of
transformers' `TrainingArguments` works, and one lone .json or .yaml file is a whole configuration. `--output_dir`
receives the model as a folder that loads like a Hub repository, `metrics.json` and `predictions.parquet`. An
interrupted run, started again, continues from its last checkpoint.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from ..atomic import whole_file, write_whole
from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError, run_verb
from ..loading import load_model
from ..modeling_dnabert2 import DNABert2ForSequenceClassification
from ..provenance import provenance
from ..remote_code import make_self_contained
from ..tokenizer.files import OURS, load_tokenizer
from ..tokenizer.policy import PolicyReport, TextPolicy
from .arguments import parse_options
from .metrics import classification_scores
from .model_settings import new_config
from .runs import check_output, make_output, run_settings, start_output
from .tables import SPLITS, Table, class_names, find_tables, label_ids, read_table


@dataclass
class ModelArguments:
    """Where the network comes from: a checkpoint, or a configuration to train from scratch."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model folder or Hub id to fine-tune."})
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Train from scratch instead: a JSON object of DNABert2Config values, {} for the full size."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder, tokenizer.json or Hub id; by default the model's, or ours."}
    )


@dataclass
class DataArguments:
    """The tables, and the text policy for what is no A, C, G or T."""

    data_path: str | None = field(
        default=None, metadata={"help": "Folder with train, dev and test tables (.csv, .tsv)."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a sequence may have, [CLS] and [SEP] included; by default no limit."}
    )
    allow_truncation: bool = field(
        default=False, metadata={"help": "Cut sequences above --max_length instead of stopping."}
    )
    keep_case: bool = field(
        default=False, metadata={"help": "Leave lower-case bases as they are: each becomes [UNK]."}
    )
    keep_u: bool = field(default=False, metadata={"help": "Leave RNA's U as it is: each becomes [UNK]."})
    iupac: str = field(
        default="n", metadata={"help": "Ambiguity codes: read as N, or keep.", "choices": ["n", "keep"]}
    )
    n: str = field(
        default="keep",
        metadata={"help": "N: keep, collapse runs of it, or drop.", "choices": ["keep", "collapse", "drop"]},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in --output_dir."})


@dataclass
class FineTuningArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of fine-tuning: best epoch by development MCC."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the model, metrics and predictions."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Sequences a device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sequences a device when evaluating."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training table."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to score the development table."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept while training."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(
        default="matthews_correlation", metadata={"help": "Development score that chooses the best checkpoint."}
    )
    # Not default_factory: HfArgumentParser takes no notice of it for a bool.
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Page-lock batches; of use with a GPU only."}
    )
    report_to: str = field(default="none", metadata={"help": "Where to log: none, tensorboard, wandb, ..."})


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, FineTuningArguments]:
    """From flags, or from one lone .json or .yaml file; raises UserError for a file that cannot be used."""
    parsed = parse_options(
        (ModelArguments, DataArguments, FineTuningArguments), argv, description=__doc__.split("\n\n")[0]
    )
    model_args, data_args, training_args = parsed
    if (model_args.model_name_or_path is None) == (model_args.config_overrides is None):
        raise UserError("give either --model_name_or_path, or --config_overrides to train from scratch.")
    if data_args.data_path is None:
        raise UserError("--data_path is missing: the folder with train.csv, dev.csv and test.csv.")
    if training_args.output_dir is None:
        raise UserError("--output_dir is missing: the folder to write the model, metrics and predictions to.")
    return parsed


def build_model(args: ModelArguments, classes: list[str], tokenizer) -> DNABert2ForSequenceClassification:
    """The classifier, new or loaded; set the seed before: its head is random either way."""
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    if args.model_name_or_path is None:
        config = new_config(DNABert2Config, args.config_overrides, vocab_size=len(tokenizer), **labels)
        model = DNABert2ForSequenceClassification(config)
    else:
        model = load_model("DNABert2ForSequenceClassification", args.model_name_or_path, **labels)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {len(tokenizer) - 1}, but the model's vocabulary ends at "
            f"{model.config.vocab_size - 1}; give the tokenizer this model was trained with."
        )
    return model


def tokenise(tables: dict[str, Table], classes: list[str], tokenizer, args: DataArguments, report: PolicyReport):
    """
    One `datasets.Dataset` a split, with input_ids, attention_mask, token_type_ids and labels, not padded.

    Raises:
        UserError: if a sequence has more than `--max_length` tokens and truncation is not allowed.
    """
    from datasets import Dataset

    encoded = {}
    for split, table in tables.items():
        columns = dict(tokenizer(table.sequences))
        too_long = [i for i, ids in enumerate(columns["input_ids"]) if args.max_length and len(ids) > args.max_length]
        if too_long and not args.allow_truncation:
            raise UserError(
                f"{table.path}, line {table.lines[too_long[0]]}: {len(too_long)} of {len(table.sequences)} sequences "
                f"have more than --max_length {args.max_length} tokens; raise it, or cut them with --allow_truncation."
            )
        if too_long:
            columns = dict(tokenizer(table.sequences, truncation=True, max_length=args.max_length))
            print(f"{table.path}: cut {len(too_long)} of {len(table.labels)} sequences to {args.max_length} tokens.")
        for ids in columns["input_ids"]:
            report.count_tokens(ids, tokenizer.unk_token_id)
        encoded[split] = Dataset.from_dict(columns | {"labels": label_ids(table, classes)})
    return encoded


def finetune(argv: list[str]):
    """Body of the verb."""
    model_args, data_args, args = parse_arguments(argv)
    output = Path(args.output_dir)
    settings = run_settings(model_args, data_args, args)
    checkpoint = check_output(settings, output, data_args.overwrite)
    if not sys.stderr.isatty():
        args.disable_tqdm = True
        logging.disable_progress_bar()
    policy = TextPolicy(not data_args.keep_case, not data_args.keep_u, data_args.iupac, data_args.n)
    report = PolicyReport(policy=policy)
    tables = {split: read_table(path, policy, report) for split, path in find_tables(data_args.data_path).items()}
    classes = class_names(tables["train"].labels)
    tokenizer = load_tokenizer(model_args.tokenizer_name or model_args.model_name_or_path or OURS)
    encoded = tokenise(tables, classes, tokenizer, data_args, report)
    print(report.describe())
    if "dev" not in encoded:
        args.eval_strategy, args.load_best_model_at_end = "no", False

    set_seed(args.seed)  # before the model: its new layers are random
    model = build_model(model_args, classes, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    source = model_args.model_name_or_path or "new, random weights"
    print(f"{parameters:,} parameters from {source}; {len(tables['train'].sequences):,} training sequences.")
    make_output(output)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("dev"),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda p: classification_scores(p.label_ids, p.predictions.argmax(axis=-1)),
    )
    if checkpoint:
        print(f"continuing from {checkpoint}")
    else:
        start_output(settings, output)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    save_run(trainer, tables, encoded, classes, seconds, report)


def save_run(trainer, tables, encoded, classes, seconds: float, report: PolicyReport):
    """Write model, predictions and, last, `metrics.json`, whose presence says that the run is whole."""
    output = Path(trainer.args.output_dir)
    trainer.save_model(str(output))
    make_self_contained(output)
    scores = {}
    for split in SPLITS[1:]:
        if split in encoded:
            logits, labels, _ = trainer.predict(encoded[split])
            scores[split] = classification_scores(labels, logits.argmax(axis=-1))
            if split == "test":
                write_predictions(tables[split], logits, labels, classes, output / "predictions.parquet")
    record = {
        **scores,
        "train_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "best_dev": trainer.state.best_metric,
        "seed": trainer.args.seed,
        "text": report.describe(),
        "provenance": provenance(trainer.args.device.type),
    }
    for folder in output.glob("checkpoint-*"):  # only of use to continue a run that is not whole
        shutil.rmtree(folder)
    write_whole(output / "metrics.json", json.dumps(record, indent=2) + "\n")
    for split, values in scores.items():
        print(split, " ".join(f"{name} {value:.4f}" for name, value in values.items()))
    if "test" in scores:
        print(f"test MCC {scores['test']['matthews_correlation']:.4f} ({output}/metrics.json)")


def write_predictions(table: Table, logits: np.ndarray, labels: np.ndarray, classes: list[str], path: Path):
    """Parquet with sequence, label, prediction and one probability column a class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=-1, keepdims=True)
    columns = {
        "sequence": table.sequences,
        "label": [classes[i] for i in labels],
        "prediction": [classes[i] for i in logits.argmax(axis=-1)],
    }
    columns |= {f"probability_{name}": probabilities[:, i] for i, name in enumerate(classes)}
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns), partial)


def main(argv: list[str] | None = None) -> int:
    return run_verb(finetune, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
