"""Training a part of a network: low-rank adapters (LoRA) with the head, or the head alone.

    model = add_lora(model, architecture, rank=8, alpha=16, dropout=0.05)          # a peft.PeftModel
    save_adapters(model, folder, base, architecture)
    model = load_adapted(folder)

LoRA: Hu et al. 2022. The pooler and the classifier are trained and saved whole beside the adapters: a checkpoint of
pretraining has neither, and an adapter that lacks them would be loaded onto new, random ones.
"""

import inspect
import json
from pathlib import Path

from torch import nn
from transformers.utils import cached_file

from ..atomic import write_whole
from ..bert_layers.checkpoints import checkpoint_errors
from ..bundled import BUNDLED, locate
from ..errors import UserError
from ..loading import first_lines
from .models import (
    CLASSIFIER,
    architecture_of,
    head_modules,
    in_module,
    load_classifier,
    lora_targets,
    switch_off_fused,
)
from .rows import Architecture

# What the base must be told before the adapters fit it. Not in a config.json, by which transformers would take the
# folder for a whole model.
BASE_FILE = "base_config.json"
PAGE = """---
base_model: {base}
library_name: peft
---

LoRA adapters, with the classifier, of `{base}`, loaded from within this folder:

```python
{code}
```

`AutoModelForSequenceClassification.from_pretrained` on this folder would not set up the base so: its labels and what
its head looks at would be those of `{base}`.

Classes: {labels}
"""
BY_US = """from dnabert2.architectures.adapters import load_adapted

model = load_adapted("."{remote})"""
BY_AUTO_CLASS = """from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

config = AutoConfig.from_pretrained("{base}"{remote})
config.update({settings})
base = AutoModelForSequenceClassification.from_pretrained(
    "{base}", config=config, ignore_mismatched_sizes=True{remote}
)
model = PeftModel.from_pretrained(base, ".")"""


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

    Where adapters would have no effect on a fused path, that path is switched off in `model`.

    Args:
        targets: ends of module names; by default those of the model's architecture.

    Raises:
        UserError: if no layer is called so.
    """
    from peft import LoraConfig, get_peft_model

    targets = targets or lora_targets(architecture, model)
    # peft's wrapper of a classifier passes an attention mask on, also to a forward that takes none.
    is_usual = "attention_mask" in inspect.signature(model.forward).parameters
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=head_modules(architecture, model),
        task_type="SEQ_CLS" if is_usual else None,
    )
    switch_off_fused(architecture, model)
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
    what that must be told (`base_config.json`), and a page that says how to load them.
    """
    model.save_pretrained(folder)
    located = Path(locate(base))
    name = str(located.resolve()) if located.exists() else base
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # auto_mapping, without a task, names a module of this machine's cache of code.
    write_whole(path, json.dumps(config | {"base_model_name_or_path": name, "auto_mapping": None}, indent=2) + "\n")

    network = model.get_base_model()
    settings = {"id2label": network.config.id2label, "problem_type": network.config.problem_type}
    if architecture.code == "ours":
        settings["classifier_pooling"] = network.config.classifier_pooling
    else:
        settings["pad_token_id"] = network.config.pad_token_id
    shown = str(base) if str(base) in BUNDLED else name
    write_whole(folder / BASE_FILE, json.dumps({"base": shown, **settings}, indent=2) + "\n")
    # In place of peft's own page, which is a form to fill in.
    code = _loading_code(network, shown, architecture, settings)
    write_whole(folder / "README.md", PAGE.format(base=shown, code=code, labels=network.config.id2label))


def _loading_code(network: nn.Module, base: str, architecture: Architecture, settings: dict) -> str:
    is_remote = type(network).__module__.startswith("transformers_modules.")
    remote = ", trust_remote_code=True" if is_remote else ""
    is_found = not is_remote or CLASSIFIER in (getattr(network.config, "auto_map", None) or {})
    if architecture.code == "ours" or architecture.lora_switches_off or not is_found:
        return BY_US.format(remote=remote)
    return BY_AUTO_CLASS.format(base=base, settings=settings, remote=remote)


def load_adapted(folder: str | Path, trust_remote_code: bool = False):
    """
    What `save_adapters` wrote: the base, with the labels and the pooling it was trained for, and the adapters on it.

    Args:
        folder: a folder, or a Hub id.
        trust_remote_code: run code of the base's repository.

    Returns:
        A peft.PeftModel in evaluation mode.

    Raises:
        UserError: if it holds no adapters of `dnabert2 finetune`, or they or their base cannot be loaded.
    """
    from peft import PeftModel

    try:
        path = cached_file(str(folder), BASE_FILE)
        described = json.loads(Path(path).read_text(encoding="utf-8"))
        base = described.pop("base")
        names = {int(i): label for i, label in described.pop("id2label").items()}
        problem_type = described.pop("problem_type")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: holds no adapters that dnabert2 finetune wrote, {BASE_FILE} cannot be read "
            f"({first_lines(error)}); give the output folder of a run with --lora."
        ) from error
    architecture = architecture_of(base, trust_remote_code)
    labels = {"id2label": names, "label2id": {label: i for i, label in names.items()}}
    model = load_classifier(
        base,
        architecture,
        problem_type=problem_type,
        labels={**labels, **described},
        trust_remote_code=trust_remote_code,
    )
    switch_off_fused(architecture, model)
    try:
        with checkpoint_errors(folder):
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its adapters do not load onto {base}: {first_lines(error)}") from error
