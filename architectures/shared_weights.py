"""Weights that stand in several places of a network: saved under each of their names.

    save_apart(model)
    model.save_pretrained(folder)

safetensors takes no tensor twice. transformers leaves out the names that a class declares as tied and refuses to save
a network that shares more, as HyenaDNA shares the frequencies of its filters. Of names that are declared nowhere, none
can be left out: a reader may need any of them.
"""

import re
from functools import partial

from torch import nn


def save_apart(model: nn.Module):
    """Let `state_dict` hold a copy under each further name of a shared weight, unless the class declares the tie."""
    tied = [
        f"{path}.{key}".lstrip(".")
        for path, module in model.named_modules()
        for key in getattr(module, "_tied_weights_keys", None) or ()
    ]
    seen, further = set(), []
    for named in (model.named_parameters, model.named_buffers):
        for name, weight in named(remove_duplicate=False):
            if any(re.search(key, name) for key in tied):
                continue
            if id(weight) in seen:
                further.append(name)
            seen.add(id(weight))
    if further:
        model.register_state_dict_post_hook(partial(_copy, further))


def _copy(names: list[str], module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict):
    for name in names:
        if prefix + name in state_dict:
            state_dict[prefix + name] = state_dict[prefix + name].clone()
