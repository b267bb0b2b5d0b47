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

PAGE = """---
base_model: {base}
library_name: peft
---

LoRA adapters, with the classifier, of `{base}`:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={count}{remote})
model = PeftModel.from_pretrained(base, "this folder")
```

Classes: {labels}
"""


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
        task_type="SEQ_CLS",
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


def save_adapters(model, folder: Path, base: str, architecture: Architecture):
    """
    Write the adapters and the head into a folder, with the base they belong to, a Hub id or a folder by its full path,
    and a page that says how to load them.
    """
    model.save_pretrained(folder)
    located = Path(locate(base))
    name = str(located.resolve()) if located.exists() else base
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_whole(path, json.dumps(config | {"base_model_name_or_path": name}, indent=2) + "\n")
    labels = model.get_base_model().config.id2label
    remote = ", trust_remote_code=True" if architecture.code != "stock" else ""
    # In place of peft's own page, which is a form to fill in.
    write_whole(folder / "README.md", PAGE.format(base=name, labels=labels, count=len(labels), remote=remote))
