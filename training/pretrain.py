"""Pretrain a masked language model of DNA on a corpus, or go on pretraining one on sequence of your own.

    dnabert2 build-corpus --input genomes/ --output corpus
    dnabert2 pretrain --corpus corpus --config training/recipes/smoke.json --output_dir runs/smoke      # two CPU cores
    torchrun --nproc_per_node 8 -m dnabert2.training.pretrain --corpus corpus \\
        --config training/recipes/dnabert2-117m.json --output_dir runs/dnabert2

Every option of transformers' `TrainingArguments` works. `--global_batch_size` counts sequences over all processes:
what a step trains on does not depend on how many there are. `--output_dir` receives the model as a folder that loads
like a Hub repository, `metrics.json`, `curve.png` and TensorBoard's logs. Killed at any moment, the same command
continues from the last checkpoint as if nothing had happened.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from ..allocator import keep_freed_memory
from ..atomic import write_whole
from ..errors import UserError, run_verb
from ..loading import load_model
from ..modeling_dnabert2 import DNABert2ForMaskedLM
from ..processes import from_main, leave
from ..provenance import provenance
from ..remote_code import make_self_contained
from ..tokenizer.files import load_tokenizer
from .corpus_stream import Corpus, PretrainingStream
from .curves import plot_curve
from .evaluation import mask_held_out, read_held_out
from .learned_positions import LearnedPositionsForMaskedLM
from .low_precision import use_low_precision_layer_norms
from .masking import MaskingPolicy
from .model_settings import new_config
from .pretrain_arguments import NOT_SETTINGS, ModelArguments, parse_arguments
from .pretrainer import Pretrainer
from .progress import use_lines
from .runs import check_output, list_checkpoints, make_output, run_settings, start_output
from .spelling import initialise_by_spelling
from .throughput import Meter, flops_per_token, peak_flops


def build_model(args: ModelArguments, tokenizer) -> DNABert2ForMaskedLM | LearnedPositionsForMaskedLM:
    """
    The network, new or loaded, or the baseline with learned positions, in float32.

    Raises:
        UserError: if it cannot be built, or if a checkpoint was trained with another tokenizer than the corpus.
    """
    backend = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    dropout = {} if args.hidden_dropout_prob is None else {"hidden_dropout_prob": args.hidden_dropout_prob}
    try:
        if args.model_name_or_path is None:
            model_class = DNABert2ForMaskedLM if args.learned_positions is None else LearnedPositionsForMaskedLM
            config = new_config(model_class.config_class, args.config_overrides, vocab_size=len(tokenizer))
            if args.learned_positions is not None:
                config.max_position_embeddings = args.learned_positions
            config.update(dropout)
            model = model_class._from_config(config, dtype=torch.float32, **backend)
            if args.initial_embeddings == "spelling":
                initialise_by_spelling(model, tokenizer)
        else:
            model = load_model(
                "DNABert2ForMaskedLM", args.model_name_or_path, dtype=torch.float32, **backend, **dropout
            )
    except (ImportError, ValueError) as error:
        raise UserError(f"--attn_implementation {args.attn_implementation}: {error}") from error
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the corpus has ids up to {len(tokenizer) - 1}, but the model's vocabulary ends at "
            f"{model.config.vocab_size - 1}; build the corpus with the model's --tokenizer."
        )
    name = args.model_name_or_path
    if name is not None and load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"the corpus was built with another tokenizer than {name} was trained with; build it with "
            f"--tokenizer {name}."
        )
    return model


def pretrain(argv: list[str]):
    """Body of the verb."""
    model_args, corpus_args, args = parse_arguments(argv, __doc__.split("\n\n")[0])
    output = Path(args.output_dir)
    is_main = args.process_index == 0  # asking starts the process group, if there are several
    if args.device.type == "cpu":
        # One of several processes calls it cpu:1 with transformers 4, a name that torch.load does not know.
        vars(args)["_setup_devices"] = torch.device("cpu")
    refuse_sharding_on_cpu(args)
    if not sys.stderr.isatty():
        args.disable_tqdm = True
        logging.disable_progress_bar()
    corpus = Corpus.open(corpus_args.corpus, corpus_args.corpus_revision)
    # The corpus itself, not only its name: a run does not go on with other sequences than it began with.
    settings = run_settings(model_args, corpus_args, args, ignore=NOT_SETTINGS) | {"corpus_sha256": corpus.sha256()}
    checkpoint = from_main(lambda: check_output(settings, output, corpus_args.overwrite), args)
    tokenizer = load_tokenizer(corpus.tokenizer_source())
    max_length = corpus_args.max_length or corpus.manifest["settings"]["window_tokens"] + 2
    if model_args.learned_positions is not None and model_args.learned_positions < max_length:
        raise UserError(
            f"--learned_positions {model_args.learned_positions}: sequences have {max_length} tokens with [CLS] and "
            "[SEP]; give at least as many."
        )
    stream = PretrainingStream(
        corpus,
        tokenizer,
        MaskingPolicy.of(tokenizer, corpus_args.mlm_probability),
        corpus_args.global_batch_size,
        args.per_device_train_batch_size,
        max_length,
        args.seed if args.data_seed is None else args.data_seed,
        args.process_index,
        args.world_size,
        short_steps=corpus_args.short_steps,
    )
    args.gradient_accumulation_steps = stream.accumulation_steps
    # The stream finds its place by itself; a loss that is not finite must be seen, not filtered.
    args.ignore_data_skip, args.logging_nan_inf_filter = True, False

    if args.device.type == "cpu":
        keep_freed_memory()
    set_seed(args.seed)
    model = build_model(model_args, tokenizer)
    held_out = None
    if args.eval_strategy != "no":
        rows = read_held_out(corpus, corpus_args.eval_sequences)
        held_out = mask_held_out(rows, tokenizer, max_length, vocab_size=model.config.vocab_size)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if model_args.low_precision_layer_norm and dtype != torch.float32:
        use_low_precision_layer_norms(model)
    peak, peak_source = peak_flops(args.device, dtype)
    flops = flops_per_token(model.config, max_length, corpus_args.mlm_probability)
    make_output(output)
    try:
        trainer = Pretrainer(
            model=model,
            args=args,
            stream=stream,
            meter=Meter(flops, peak, args.world_size),
            neighbour_weight=corpus_args.neighbour_weight,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
    except RuntimeError as error:
        if "installed" not in str(error):
            raise
        raise UserError(f"--report_to {' '.join(args.report_to)}: {error}") from error  # a logger that is not there
    use_lines(trainer, with_bar=not args.disable_tqdm)
    if is_main:
        source = model_args.model_name_or_path or "new, random weights"
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{parameters:,} parameters from {source}, dropout {model.config.hidden_dropout_prob:g}; "
            f"{args.max_steps:,} steps of {corpus_args.global_batch_size:,} sequences of at most {max_length} tokens "
            f"in {args.world_size} x {stream.accumulation_steps} "
            f"micro-batches; MFU is of {peak / 1e12:.4g} TFLOP/s ({peak_source})."
        )
        print(f"continuing from {checkpoint}" if checkpoint else f"starting in {output}", flush=True)
        if not checkpoint:
            start_output(settings, output)
            for path in (output / "runs").rglob("events.out.tfevents*"):  # TensorBoard's logs of what is overwritten
                path.unlink()
    trainer.accelerator.wait_for_everyone()
    origin = provenance(args.device.type)  # now: what lies on disk when hours have passed may be other code
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    speed = {"flops_per_token": flops, "peak": peak, "peak_of": peak_source}
    save_run(trainer, time.perf_counter() - start, speed, origin)


def refuse_sharding_on_cpu(args: TrainingArguments):
    """Raise UserError for FSDP without GPUs: accelerate would train with DDP and say nothing."""
    if args.fsdp and args.device.type == "cpu":
        raise UserError("--fsdp shards over GPUs, and there is none here; leave it out, DDP works on CPUs.")


def save_run(trainer: Pretrainer, seconds: float, speed: dict, origin: dict):
    """Evaluate, write the model and the curve and, last, `metrics.json`, whose presence says that the run is whole."""
    args, state = trainer.args, trainer.state
    output = Path(args.output_dir)
    is_scored = any(entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history)
    if trainer.eval_dataset is not None and not is_scored:
        trainer.evaluate()
    trainer.save_model(str(output))
    if args.process_index != 0:
        return
    if not isinstance(trainer.model, LearnedPositionsForMaskedLM):  # the baseline is not for the Hub
        make_self_contained(output)
    history = state.log_history
    evaluations = [entry for entry in history if "eval_loss" in entry]
    rates = sorted(entry["tokens_per_second"] for entry in history if entry.get("tokens_per_second"))
    record = {
        "steps": state.global_step,
        "evaluation": {k.removeprefix("eval_"): v for k, v in evaluations[-1].items() if k.startswith("eval_")}
        if evaluations
        else None,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "train_seconds_since_start_or_resume": round(seconds, 1),
        "tokens_per_second_median": rates[len(rates) // 2] if rates else None,
        **speed,
        "processes": args.world_size,
        "checkpoints": [path.name for path in list_checkpoints(output)],
        "history": history,
        "provenance": origin,
    }
    plot_curve(history, output / "curve.png", f"{record['parameters'] / 1e6:.1f}M parameters")
    write_whole(output / "metrics.json", json.dumps(record, indent=1) + "\n")
    for entry in evaluations[-1:]:
        print(" ".join(f"{name} {entry[f'eval_{name}']:.4f}" for name in ("loss", "accuracy", "bits_per_base")))
    print(f"{output}: whole, after {state.global_step:,} steps.")


def main(argv: list[str] | None = None) -> int:
    return run_verb(pretrain, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    leave(main())
