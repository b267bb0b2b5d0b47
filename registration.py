"""In-process registration of the Auto classes, so that our own checkpoints load without `trust_remote_code`.

Hub folders bring their own code and never import this file.
"""

import transformers

from . import configuration_dnabert2, modeling_dnabert2


def register_auto_classes():
    """Make AutoConfig and the AutoModel classes of this process know `model_type="dnabert2"`; safe to call again."""
    config_class = configuration_dnabert2.DNABert2Config
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_name, reference in modeling_dnabert2.AUTO_MAP.items():
        if auto_name != "AutoConfig":
            model_class = getattr(modeling_dnabert2, reference.split(".")[-1])
            getattr(transformers, auto_name).register(config_class, model_class, exist_ok=True)
