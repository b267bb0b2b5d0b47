"""What a run says while it goes on: a line for the training loss, a line for what it was scored on."""

from collections.abc import Callable

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .curves import SUFFIX


def log_line(logs: dict, step: int, max_steps: int) -> str | None:
    """One line for a Trainer's log entry, or None for an entry that only ends a run."""
    if "loss" in logs:
        neighbours = f" ({logs['neighbour_loss']:.3f} of neighbours)" if "neighbour_loss" in logs else ""
        return (
            f"step {step:,} of {max_steps:,}: loss {logs['loss']:.4f}{neighbours}, "
            f"learning rate {logs['learning_rate']:.3g}, {logs['tokens_per_second']:,.0f} tokens/s, "
            f"MFU {100 * logs['mfu']:.1f} %"
        )
    if "eval_loss" not in logs:
        return None
    groups = {k.removeprefix("eval_").removesuffix(SUFFIX): v for k, v in logs.items() if k.endswith(SUFFIX)}
    groups.pop("bits_per_base", None)
    named = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in groups.items())
    return (
        f"step {step:,} held out: loss {logs['eval_loss']:.4f}, accuracy {logs['eval_accuracy']:.4f}, "
        f"{logs[f'eval{SUFFIX}']:.4f} bits per base ({named})"
    )


def score_line(logs: dict, step: int, max_steps: int) -> str | None:
    """The same of fine-tuning: the loss, or the development scores."""
    if "loss" in logs:
        return f"step {step:,} of {max_steps:,}: loss {logs['loss']:.4f}, learning rate {logs['learning_rate']:.3g}"
    if "eval_flat" not in logs:
        return None
    scores = {key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith("eval_")}
    flat = " (all predictions the same)" if scores.pop("flat") else ""
    said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
    return f"step {step:,} dev: {said}{flat}"


class Lines(PrinterCallback):
    """Prints them."""

    def __init__(self, line: Callable[[dict, int, int], str | None]):
        self.line = line

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = self.line(logs, state.global_step, state.max_steps)
        if state.is_local_process_zero and line:
            print(line, flush=True)


class LinesAboveBar(ProgressCallback):
    """Writes them above a progress bar, on a terminal."""

    def __init__(self, line: Callable[[dict, int, int], str | None]):
        super().__init__()
        self.line = line

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = self.line(logs, state.global_step, state.max_steps)
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(line)


def use_lines(trainer, with_bar: bool, line: Callable[[dict, int, int], str | None] = log_line):
    """Replace the Trainer's own printing of dictionaries by `line` of each, `log_line` or `score_line`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LinesAboveBar(line) if with_bar else Lines(line))
