"""Options of `finetune`: three dataclasses on top of transformers' TrainingArguments, and what cannot be asked for."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..errors import UserError
from .arguments import parse_options, refuse_below
from .metrics import SELECTABLE, greater_is_better

PROBLEMS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
    "base_classification",
)

AUTO = "auto"
LEAST = {
    **dict.fromkeys(("global_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size"), 1),
    **dict.fromkeys(("early_stopping_patience", "plateau_patience", "lora_r", "lora_alpha"), 1),
    **dict.fromkeys(("plateau_restarts", "confidence_resamples", "seed"), 0),
    "max_length": 3,  # a token between the special ones
}


@dataclass
class ModelArguments:
    """Where the network comes from, which part of it is trained, and what its head looks at."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model folder, Hub id, or mini, to fine-tune; any sequence classifier."}
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Train from scratch instead: a JSON object of DNABert2Config values, {} for the full size."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder, tokenizer.json or Hub id; by default the model's, or ours."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that a foreign model brings along, as HyenaDNA does."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention backend; by default the fastest that works here."}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "What the head looks at: cls, the pooler of [CLS] as published, or mean, the mean over tokens. "
            "By default what the checkpoint says, cls for one that says nothing.",
            "choices": ["cls", "mean"],
        },
    )
    lora: bool = field(default=False, metadata={"help": "Train low-rank adapters and the head, nothing else."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Their scale is this over the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Linear layers that get adapters; by default all of the encoder's blocks."}
    )
    merge_lora: bool = field(
        default=False, metadata={"help": "Write a whole model with the adapters added in, beside the adapters."}
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train the head alone."})


@dataclass
class DataArguments:
    """The tables, what their labels mean, and the text policy for what is no A, C, G or T."""

    data_path: str | None = field(
        default=None,
        metadata={"help": "Folder with train, dev and test tables (.csv, .tsv, .parquet, .jsonl), or a Hub dataset."},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "What is learnt; by default classes, several yes-or-no labels if there are several label columns.",
            "choices": list(PROBLEMS),
        },
    )
    sequence_column: str = field(default="sequence", metadata={"help": "Column of the sequences."})
    pair_column: str = field(default="sequence2", metadata={"help": "Column of second sequences, if it is there."})
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the labels; by default label, or all named label_*."}
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the classes, in the order of their ids, for the configuration."},
    )
    no_token_types: bool = field(
        default=False, metadata={"help": "Give both sequences of a pair the same token type, as published."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens a sequence may have, special ones included; by default what the model can take."},
    )
    allow_truncation: bool = field(
        default=False, metadata={"help": "Cut sequences above the limit instead of stopping."}
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "Weight classes in the loss: none, or balanced, by how rare they are.",
            "choices": ["none", "balanced"],
        },
    )
    rc_augment: bool = field(
        default=False,
        metadata={
            "help": "Train on either strand of a sequence, each epoch anew. Not for labels that belong to one strand."
        },
    )
    rc_average: bool = field(default=False, metadata={"help": "Average scores over both strands when evaluating."})
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
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace an earlier run in --output_dir that is finished or had other settings."},
    )


@dataclass
class FineTuningArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of fine-tuning: best epoch by development MCC."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the model, metrics and predictions."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate."})
    global_batch_size: int = field(
        default=32, metadata={"help": "Sequences of a step, over all devices and accumulation steps."}
    )
    per_device_train_batch_size: int = field(
        default=32,
        metadata={"help": "Most sequences of one forward pass; never more than a device's share of a step."},
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sequences a device when evaluating."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training table."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to score the development table."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept while training."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint, not the last."})
    # Not None, which transformers takes for loss.
    metric_for_best_model: str | None = field(
        default=AUTO,
        metadata={
            "help": "Development score that chooses the best checkpoint; auto: matthews_correlation, for regression "
            f"pearson. The published choice is loss. One of {', '.join(SELECTABLE)}."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better score."}
    )
    plateau_restarts: int = field(
        default=2,
        metadata={
            "help": "Start a dead run, whose predictions are all the same, anew so often, each time with the "
            "next seed."
        },
    )
    plateau_patience: int = field(
        default=5, metadata={"help": "Evaluations in a row with all predictions the same that make a run dead."}
    )
    confidence_resamples: int = field(
        default=1000, metadata={"help": "Resamples of the test table for 95 %% confidence intervals; 0 for none."}
    )
    # Not default_factory: HfArgumentParser takes no notice of it for a bool.
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Page-lock batches; of use with a GPU only."}
    )
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU; by default where there is no GPU."},
    )
    report_to: str = field(default="none", metadata={"help": "Where to log: none, tensorboard, wandb, ..."})


Arguments = tuple[ModelArguments, DataArguments, FineTuningArguments]


def parse_arguments(argv: list[str], description: str = "") -> Arguments:
    """From flags and at most one .json or .yaml file; raises UserError for values that cannot be used."""
    return check_arguments(parse_options((ModelArguments, DataArguments, FineTuningArguments), argv, description))


def check_arguments(parsed: Arguments) -> Arguments:
    """Raise UserError for values that cannot be used; fill in those that follow from others."""
    model_args, data_args, args = parsed
    if (model_args.model_name_or_path is None) == (model_args.config_overrides is None):
        raise UserError("give either --model_name_or_path, or --config_overrides to train from scratch.")
    if data_args.data_path is None:
        raise UserError("--data_path is missing: the folder with train.csv, dev.csv and test.csv, or a Hub dataset.")
    if args.output_dir is None:
        raise UserError("--output_dir is missing: the folder to write the model, metrics and predictions to.")
    per_base = data_args.problem_type == "base_classification"
    if model_args.lora and model_args.freeze_backbone:
        raise UserError("--lora trains adapters inside the backbone, --freeze_backbone nothing of it; give one.")
    if model_args.lora and (model_args.model_name_or_path is None or per_base):
        raise UserError("--lora adapts a pretrained model to labels of whole sequences; give --model_name_or_path.")
    if model_args.merge_lora and not model_args.lora:
        raise UserError("--merge_lora is for --lora; give both or neither.")
    if per_base and (data_args.rc_augment or data_args.rc_average):
        raise UserError("--rc_augment and --rc_average are for labels of whole sequences, not of bases; leave it out.")
    if per_base and data_args.allow_truncation:
        raise UserError("--allow_truncation would cut off bases that have labels; cut the sequences in the tables.")
    if per_base and model_args.pooling:
        raise UserError("--pooling is for labels of whole sequences, not of bases; leave it out.")
    if args.early_stopping_patience is not None and (args.eval_strategy == "no" or not args.load_best_model_at_end):
        raise UserError("--early_stopping_patience needs --eval_strategy epoch or steps and --load_best_model_at_end.")
    if args.label_smoothing_factor:
        raise UserError("--label_smoothing_factor has no effect on the losses of this command; leave it out.")
    if args.auto_find_batch_size:
        raise UserError("--auto_find_batch_size would change what a step sees; set --per_device_train_batch_size.")
    if args.gradient_accumulation_steps != 1:
        raise UserError("--gradient_accumulation_steps follows from --global_batch_size; leave it out.")
    metric = args.metric_for_best_model or AUTO
    if metric != AUTO and metric.removeprefix("eval_") not in SELECTABLE:
        raise UserError(
            f"--metric_for_best_model {metric}: there is no such score; it is one of {', '.join(SELECTABLE)}."
        )
    refuse_below(parsed, LEAST)
    if not 0 <= model_args.lora_dropout < 1:
        raise UserError(f"--lora_dropout {model_args.lora_dropout}: must be at least 0 and below 1.")
    return parsed


def share_out(args: FineTuningArguments):
    """
    Set the micro-batch and the accumulation so that a step sees `--global_batch_size` sequences on any devices.

    Raises:
        UserError: if the devices cannot share it evenly.
    """
    devices = args.world_size * max(1, args.n_gpu)
    share, rest = divmod(args.global_batch_size, devices)
    if rest or not share:
        raise UserError(
            f"--global_batch_size {args.global_batch_size} cannot be shared evenly by {devices} devices; give a "
            "multiple."
        )
    # The largest micro-batch that fits evenly.
    micro = next(size for size in range(min(args.per_device_train_batch_size, share), 0, -1) if share % size == 0)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = micro, share // micro


def choose_best_by(args: FineTuningArguments, default: str, scores: tuple[str, ...]):
    """
    Settle which development score chooses the checkpoint, and its direction, before the Trainer reads them.

    Args:
        default: the problem's usual score.
        scores: all that the problem has.

    Raises:
        UserError: if the score that was asked for is none of them.
    """
    metric = args.metric_for_best_model or AUTO
    args.metric_for_best_model = default if metric == AUTO else metric.removeprefix("eval_")
    if args.metric_for_best_model not in (*scores, "loss"):
        raise UserError(
            f"--metric_for_best_model {args.metric_for_best_model}: these labels have no such score; choose one of "
            f"{', '.join(scores)}, loss."
        )
    args.greater_is_better = greater_is_better(args.metric_for_best_model)
