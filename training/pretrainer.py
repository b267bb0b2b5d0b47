"""`transformers.Trainer` for masked-LM pretraining: our stream of batches; checkpoints that are whole or absent."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic import write_whole
from ..bert_layers.losses import IGNORE_INDEX
from ..errors import RunFailed, UserError
from .corpus_stream import PretrainingStream
from .evaluation import HeldOut, score_held_out
from .orientation import NeighbourLoss
from .runs import list_checkpoints
from .throughput import Meter

PARTIAL = ".partial-checkpoint"
DELETED = ".deleted-"


class Pretrainer(Trainer):
    """
    Args:
        stream: this process's micro-batches, starting at the step to continue from.
        meter: counts tokens and time.
        neighbour_weight: of `orientation.NeighbourLoss`, which is added to the masked tokens' own.

    A loss or weight that is not finite raises RunFailed, before anything is saved.
    """

    def __init__(
        self,
        *,
        stream: PretrainingStream,
        meter: Meter,
        eval_dataset: HeldOut | None,
        neighbour_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(train_dataset=stream, eval_dataset=eval_dataset, **kwargs)
        self.neighbour_weight = neighbour_weight
        self.neighbour_sums = []  # since the last line of the log: of each micro-batch nats and masked tokens
        self.neighbour_loss = NeighbourLoss(self.model.config.hidden_size) if neighbour_weight else None
        self.stream, self.meter = stream, meter
        self.micro_step, self.partial = 0, None
        self.add_callback(FiniteGradients())

    def get_train_dataloader(self) -> DataLoader:
        """Not accelerate's: the stream is this process's own, and knows its place by the step."""
        self.stream.first_step = self.state.global_step if self.resumed_step is None else self.resumed_step
        self.stream.last_step = self.args.max_steps  # or a run that was whole but for its record would go on
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            multiprocessing_context="spawn" if workers else None,
            # Its own: a draw from torch's would shift the dropout of a run that goes on.
            generator=torch.Generator(),
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
        try:
            samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        except UserError as error:  # out of a worker it comes with a traceback in its text
            raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]) from error
        pad = self.stream.tokenizer.pad_token_id
        self.meter.tokens += sum(int((sample["input_ids"] != pad).sum()) for sample in samples)
        self.micro_step = 0
        return samples, items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """With the head on the masked positions alone, and the neighbours' loss if it has a weight."""
        inputs = {**inputs, "labelled_only": True}
        if self.neighbour_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["output_hidden_states"] = True
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        embeddings = self.accelerator.unwrap_model(model).get_input_embeddings().weight.detach()
        if hasattr(embeddings, "full_tensor"):  # sharded
            embeddings = embeddings.full_tensor()
        if embeddings.dim() != 2:
            raise UserError(
                "--neighbour_weight needs the word embeddings, which version 1 of --fsdp flattens; leave it out, or "
                "set fsdp_version to 2 in --fsdp_config."
            )
        ids, labels = inputs["input_ids"], inputs["labels"]
        with self.accelerator.autocast():
            neighbours = self.neighbour_loss(outputs["hidden_states"][-1], embeddings, ids, labels)
        masked = (labels != IGNORE_INDEX).sum()
        self.neighbour_sums.append(torch.stack([neighbours.detach(), masked.float()]))
        # Scaled as the Trainer scales its own, so that accumulation and processes do not matter.
        items = masked.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        share = neighbours / items
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            share = share * self.accelerator.num_processes
        loss = loss + self.neighbour_weight * share
        return (loss, outputs) if return_outputs else loss

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
            f"{self._last_good()} Go on from it in another --output_dir with --model_name_or_path, a lower "
            "--learning_rate or --max_grad_norm, or in float32."
        )

    def _last_good(self) -> str:
        return last_good(list_checkpoints(Path(self.args.output_dir)))

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
        """Adds tokens/s, MFU and the neighbours' share of the loss to what is logged of training."""
        if "loss" in logs:
            logs = {**logs, **self.meter.read()}
            if self.neighbour_sums:
                nats, masked = self.accelerator.reduce(torch.stack(self.neighbour_sums).sum(dim=0))
                logs["neighbour_loss"] = float(nats / masked.clamp(min=1))
                self.neighbour_sums.clear()
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir=None, state_dict=None):
        # Gathered from shards, a tied weight is two tensors; it belongs into the file once.
        if state_dict is not None:
            tied = getattr(self.model, "_tied_weights_keys", None) or ()
            state_dict = {key: value for key, value in state_dict.items() if key not in tied}
        super()._save(output_dir, state_dict)

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
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have their own words for a full disk.
            if not any(word in str(error) for word in ("No space left", "quota", "PytorchStreamWriter", "code: 28")):
                raise
            raise RunFailed(
                f"{output}: the disk is full at step {self.state.global_step}. {self._last_good()} Make room, and the "
                "same command goes on from it."
            ) from error
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


class FiniteGradients(TrainerCallback):
    """Stops before a gradient that is not finite reaches the weights; fp16's scaler skips such steps by itself."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if args.fp16:
            return
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not torch.isfinite(norm):
            checkpoints = list_checkpoints(Path(args.output_dir))
            raise RunFailed(f"step {state.global_step + 1}: the gradient is not finite. {last_good(checkpoints)}")


def last_good(checkpoints: list[Path]) -> str:
    """A sentence that names the last of them."""
    return f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else "There is no checkpoint yet."


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
