"""Training a part of a network: low-rank adapters (LoRA) with the head, or the head alone.

    model = add_lora(model, architecture, rank=8, alpha=16, dropout=0.05)          # a peft.PeftModel

LoRA: Hu et al. 2022. The pooler and the classifier are trained and saved whole beside the adapters: a checkpoint of
pretraining has neither, and an adapter that lacks them would be loaded onto new, random ones.
"""

import json
from pathlib import Path

from torch import nn

from ..atomic import write_whole
from ..bundled import locate
from ..errors import UserError
from .architecture_rows import Architecture
from .architectures import head_modules, in_module, lora_targets


def add_lora(
    model: nn.Module,
    architecture: Architecture,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: list[str] | None = None,
):
    """
    The model with adapters on its linear layers, of which they and the head alone are trained.

    Args:
        targets: ends of module names; by default those of the model's architecture.

    Raises:
        UserError: if no layer is called so.
    """
    from peft import LoraConfig, get_peft_model

    targets = targets or lora_targets(architecture, model)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=head_modules(architecture, model),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear}
        )
        raise UserError(
            f"--lora_target_modules {' '.join(targets)}: the model has no such layers; its linear ones end in "
            f"{', '.join(linear)}."
        ) from error


def freeze_backbone(model: nn.Module, architecture: Architecture):
    """Leave the head alone to be trained."""
    heads = head_modules(architecture, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(in_module(name, head) for head in heads)


def trainable(model: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save_base_name(folder: Path, base: str):
    """Say in `adapter_config.json` which model the adapters belong to: a Hub id, or a folder by its full path."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    located = Path(locate(base))
    config["base_model_name_or_path"] = str(located.resolve()) if located.exists() else base
    write_whole(path, json.dumps(config, indent=2) + "\n")
