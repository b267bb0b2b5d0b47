"""`transformers.Trainer` for masked-LM pretraining: our stream of batches; checkpoints that are whole or absent."""

import json
import os
import shutil
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic import write_whole
from ..errors import RunFailed
from .corpus_stream import PretrainingStream
from .evaluation import HeldOut, score_held_out
from .throughput import Meter

PARTIAL = ".partial-checkpoint"
DELETED = ".deleted-"


class Pretrainer(Trainer):
    """
    Args:
        stream: this process's micro-batches, starting at the step to continue from.
        meter: counts tokens and time.

    A loss or weight that is not finite raises RunFailed, before anything is saved.
    """

    def __init__(self, *, stream: PretrainingStream, meter: Meter, eval_dataset: HeldOut | None, **kwargs):
        super().__init__(train_dataset=stream, eval_dataset=eval_dataset, **kwargs)
        self.stream, self.meter = stream, meter
        self.micro_step, self.partial = 0, None

    def get_train_dataloader(self) -> DataLoader:
        """Not accelerate's: the stream is this process's own, and knows its place by the step."""
        self.stream.first_step = self.state.global_step if self.resumed_step is None else self.resumed_step
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            multiprocessing_context="spawn" if workers else None,
        )

    resumed_step: int | None = None

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train to `max_steps`, from the start or from a checkpoint folder of an earlier run."""
        clear_leftovers(Path(self.args.output_dir), self.args.should_save)
        if resume_from_checkpoint:
            state = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
            self.resumed_step = state["global_step"]
        self.meter.start()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts the step's tokens, while the batches are still on the CPU."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        pad = self.stream.tokenizer.pad_token_id
        self.meter.tokens += sum(int((sample["input_ids"] != pad).sum()) for sample in samples)
        self.micro_step = 0
        return samples, items

    def compute_loss(self, model, inputs, *args, **kwargs):
        """With the head on the masked positions alone."""
        return super().compute_loss(model, {**inputs, "labelled_only": True}, *args, **kwargs)

    def training_step(self, *args, **kwargs):
        """One micro-batch, forward and backward."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self._stop_at_loss(float(loss))
        self.micro_step += 1
        return loss

    def _stop_at_loss(self, loss: float):
        step, micro_step = self.state.global_step, self.micro_step
        sequences = self.stream.describe(step, micro_step)
        path = Path(self.args.output_dir) / f"not-finite-step-{step + 1}-process-{self.args.process_index}.json"
        write_whole(path, json.dumps({"step": step + 1, "micro_batch": micro_step, "sequences": sequences}, indent=1))
        raise RunFailed(
            f"step {step + 1}, process {self.args.process_index}, micro-batch {micro_step}: the loss is {loss}; its "
            f"{len(sequences)} sequences are listed in {path}, the first is {sequences[0]}. "
            f"{self._last_good()} Lower --learning_rate or --max_grad_norm, or train in float32, and continue from it."
        )

    def _last_good(self) -> str:
        checkpoints = list_checkpoints(Path(self.args.output_dir))
        return f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else "There is no checkpoint yet."

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss, accuracy and bits per base on the held-out windows, over all and by group; logged like any other."""
        self.meter.pause()
        sums = score_held_out(
            self.model,
            eval_dataset if isinstance(eval_dataset, HeldOut) else self.eval_dataset,
            self.args.per_device_eval_batch_size,
            self.args.device,
            self.args.process_index,
            self.args.world_size,
            self.accelerator.autocast,
        )
        metrics = sums.metrics(f"{metric_key_prefix}_")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.start()
        return metrics

    def log(self, logs: dict[str, float], *args, **kwargs):
        """Adds tokens/s and MFU to what is logged of training."""
        if "loss" in logs:
            logs = {**logs, **self.meter.read()}
        super().log(logs, *args, **kwargs)

    def _get_output_dir(self, trial) -> str:
        return str(self.partial) if self.partial else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """As the Trainer's, but under another name until it is whole; then the oldest ones go."""
        self.meter.pause()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise RunFailed(f"step {self.state.global_step}: a weight is not finite. {self._last_good()}")
        output = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.partial = output / PARTIAL
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.partial = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save and not (output / name).exists():
            _flush(output / PARTIAL / name)
            os.replace(output / PARTIAL / name, output / name)
            shutil.rmtree(output / PARTIAL)
            rotate(output, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        self.meter.start()


def list_checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints in a run's folder, oldest first."""
    found = [path for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def rotate(output: Path, limit: int | None):
    """Remove all but the newest `limit` checkpoints; each loses its name first, so that none is ever half there."""
    for path in list_checkpoints(output)[: -limit if limit else 0]:
        doomed = path.with_name(DELETED + path.name)
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def clear_leftovers(output: Path, is_main: bool):
    """Remove what a killed run left half-written or half-deleted."""
    if is_main:
        for path in [output / PARTIAL, *output.glob(f"{DELETED}*")]:
            shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path):
    # Onto the disk before the rename is: a power cut must not leave a named checkpoint of empty files.
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
