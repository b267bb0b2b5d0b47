"""Options of `pretrain`: three dataclasses on top of transformers' TrainingArguments, and what cannot be asked for."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..errors import UserError
from .arguments import parse_options, refuse_below

# How the work is dealt out does not decide a run's result, so that it may go on with other hardware.
NOT_SETTINGS = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "fsdp",
    "fsdp_config",
    "ddp_find_unused_parameters",
    "local_rank",
    "save_total_limit",
}
LEAST = {
    **dict.fromkeys(("global_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size"), 1),
    **{"eval_sequences": 1, "max_length": 3, "seed": 0, "data_seed": 0},
}


@dataclass
class ModelArguments:
    """Where the network comes from: a checkpoint, or a configuration to train from scratch."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id to go on with; its own layout or the published one."}
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Train from scratch instead: a JSON object of DNABert2Config values, {} for the full size."},
    )
    initial_embeddings: str = field(
        default="random",
        metadata={
            "help": "From scratch: word embeddings as published, or by spelling.",
            "choices": ["random", "spelling"],
        },
    )
    hidden_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout while pretraining; by default what the configuration says."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention backend; by default the fastest that works here."}
    )
    low_precision_layer_norm: bool = field(
        default=True, metadata={"help": "With --bf16 or --fp16: layer norms in half precision, summed in float32."}
    )
    learned_positions: int | None = field(
        default=None,
        metadata={"help": "Train a baseline instead: a table of so many learned positions in place of ALiBi."},
    )


@dataclass
class CorpusOptions:
    """What it is trained on."""

    corpus: str | None = field(
        default=None, metadata={"help": "Folder of build-corpus, or a Hub dataset of its form."}
    )
    corpus_revision: str | None = field(default=None, metadata={"help": "Commit or branch of a Hub dataset."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a sequence with [CLS] and [SEP]; by default a window and these two."},
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens to predict."})
    neighbour_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of a second loss: masked tokens also name their neighbours (orientation.py)."},
    )
    short_steps: int = field(
        default=0, metadata={"help": "So many steps begin on pieces of sequences, an eighth as long and growing."}
    )
    global_batch_size: int = field(default=4096, metadata={"help": "Sequences of a step, over all processes."})
    eval_sequences: int = field(default=256, metadata={"help": "Held-out sequences of each group to evaluate on."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in --output_dir."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the published recipe as defaults."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the model, its checkpoints and logs."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=1e-5, metadata={"help": "AdamW's weight decay."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's beta1."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's beta2."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    max_steps: int = field(default=500_000, metadata={"help": "Steps of a global batch each."})
    warmup_steps: int = field(default=30_000, metadata={"help": "Steps to the peak learning rate."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Sequences of one forward pass."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Sequences of one pass when evaluating."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: steps or no."})
    eval_steps: float | None = field(default=5_000, metadata={"help": "Steps between two evaluations."})
    save_steps: float = field(default=5_000, metadata={"help": "Steps between checkpoints; a multiple of logging's."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "DDP's; every weight is used."})
    # Not default_factory: HfArgumentParser takes no notice of it for a bool.
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU; by default where there is no GPU."},
    )
    report_to: str = field(default="tensorboard", metadata={"help": "Where to log: none, tensorboard, wandb, ..."})


def parse_arguments(
    argv: list[str], description: str = ""
) -> tuple[ModelArguments, CorpusOptions, PretrainingArguments]:
    """From flags and at most one .json or .yaml file; raises UserError for values that cannot be used."""
    model_args, corpus_args, args = parse_options(
        (ModelArguments, CorpusOptions, PretrainingArguments), argv, description
    )
    if (model_args.model_name_or_path is None) == (model_args.config_overrides is None):
        raise UserError("give either --model_name_or_path, or --config_overrides to train from scratch.")
    if model_args.initial_embeddings == "spelling" and model_args.config_overrides is None:
        raise UserError("--initial_embeddings spelling is for training from scratch; leave it out.")
    if model_args.learned_positions is not None and model_args.model_name_or_path is not None:
        raise UserError("--learned_positions trains a baseline from scratch: give --config_overrides, no model.")
    if model_args.hidden_dropout_prob is not None and not 0 <= model_args.hidden_dropout_prob < 1:
        raise UserError(f"--hidden_dropout_prob {model_args.hidden_dropout_prob}: must be at least 0 and below 1.")
    if corpus_args.corpus is None:
        raise UserError("--corpus is missing: the folder that build-corpus wrote, or a Hub dataset like it.")
    if args.output_dir is None:
        raise UserError("--output_dir is missing: the folder for the model and its checkpoints.")
    if not isinstance(args.max_steps, int) or args.max_steps < 1:
        raise UserError(f"--max_steps {args.max_steps}: must be an integer of at least 1.")
    if not 0 < corpus_args.mlm_probability < 1:
        raise UserError(f"--mlm_probability {corpus_args.mlm_probability}: must be between 0 and 1.")
    if corpus_args.neighbour_weight < 0 or corpus_args.short_steps < 0:
        raise UserError("--neighbour_weight and --short_steps must be at least 0.")
    if args.gradient_accumulation_steps != 1:
        raise UserError("--gradient_accumulation_steps follows from --global_batch_size; leave it out.")
    if args.save_strategy == "steps" and (args.save_steps < 1 or args.save_steps % args.logging_steps):
        raise UserError(
            f"--save_steps {args.save_steps:g} must be a multiple of --logging_steps {args.logging_steps:g}, so that "
            "a run that goes on logs the same losses."
        )
    for name in ("load_best_model_at_end", "auto_find_batch_size", "save_only_model", "resume_from_checkpoint"):
        if getattr(args, name, None):
            raise UserError(
                f"--{name} does not go with pretraining, which goes on from its own last checkpoint; leave it out."
            )
    if args.dataloader_num_workers > 1:
        raise UserError(
            f"--dataloader_num_workers {args.dataloader_num_workers}: give 0 or 1; every worker reads all sequences."
        )
    refuse_below((corpus_args, args), LEAST)
    return model_args, corpus_args, args
