"""Any sequence classifier of the Hugging Face ecosystem: loaded, given DNA as it wants it, and prepared for LoRA.

    architecture = architecture_of("InstaDeepAI/nucleotide-transformer-500m-human-ref")
    tokenizer = load_any_tokenizer(name, architecture)
    model = load_classifier(name, architecture, problem_type="single_label_classification", labels=labels)
    fit_tokenizer(tokenizer, model)

What differs between them is a row of `rows.json`, read by `rows.py`; `encoding.py` gives them sequences.
"""

import importlib.util
import json
from pathlib import Path

import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import cached_file, extract_commit_hash

from ..bert_layers.checkpoints import checkpoint_errors
from ..bundled import locate
from ..errors import UserError
from ..loading import check_name, first_lines, load_model
from ..terminal import no_loading_report
from ..tokenizer.files import load_tokenizer
from .encoding import prepare_text
from .rows import Architecture, match_architecture
from .shared_weights import save_apart

HEAD_NAMES = ("classifier", "score", "classification_head", "head")
CLASSIFIER = "AutoModelForSequenceClassification"
PROBE = "ACGTTGCAACGTCCATTGAC"  # what a tokenizer that knows DNA has words for
# What code on the Hub that was written for other versions raises.
OUTDATED = (ImportError, AttributeError, TypeError, NotImplementedError)


def architecture_of(name_or_path: str | Path, trust_remote_code: bool = False) -> Architecture:
    """
    What kind of model a folder, a Hub id or a bundled checkpoint holds. No code of it is run.

    Raises:
        UserError: if there is no model of this name, or it is code that is not trusted.
    """
    name = locate(name_or_path)
    config = _read_config(name)
    architecture = match_architecture(name, config)
    _check_trust(name, architecture, config, trust_remote_code)
    return architecture


def hidden_size(name_or_path: str | Path) -> int | None:
    """The width of a model's vectors by its configuration; None for one that calls it otherwise."""
    config = _read_config(locate(name_or_path))
    return config.get("hidden_size", config.get("d_model"))


def hub_commit(name_or_path: str | Path) -> str | None:
    """The commit that a name on the Hub stands for at present; None for a folder."""
    name = locate(name_or_path)
    if Path(name).is_dir():
        return None
    check_name(name)
    try:
        return extract_commit_hash(cached_file(name, "config.json"), None)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its config.json cannot be read: {first_lines(error)}") from error


def _read_config(name: str) -> dict:
    check_name(name)
    try:
        return PretrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its config.json cannot be read: {first_lines(error)}") from error


def _check_trust(name: str, architecture: Architecture, config: dict, trust_remote_code: bool):
    modules = config.get("auto_map") or {}
    is_remote = architecture.code == "remote" or (architecture.code == "auto" and CLASSIFIER in modules)
    if is_remote and not trust_remote_code:
        raise UserError(
            f"{name}: {architecture.name} is code of its own repository; read it there, then allow it to run with "
            "--trust_remote_code."
        )
    if is_remote and not modules:
        raise UserError(
            f"{name}: config.json names no code (auto_map), which {architecture.name} needs; copy the code and "
            "auto_map from the repository the model comes from."
        )


def load_any_tokenizer(name: str | Path, architecture: Architecture, trust_remote_code: bool = False):
    """
    The model's tokenizer, or another for it, with its inputs, padding side and pad token as the row says.

    Args:
        name: a folder, which needs no model in it, or a Hub id.

    Raises:
        UserError: if there is none, it cannot be read, it has no pad token, or it does not know DNA.
    """
    name = locate(name)
    if architecture.code == "ours":
        return load_tokenizer(name)
    trusted = architecture.runs_code(trust_remote_code)
    try:
        _check_tokenizer_file(Path(name) / "tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusted, **architecture.tokenizer_options)
    except (OSError, ValueError, KeyError, *OUTDATED) as error:
        raise UserError(f"{name}: its tokenizer cannot be loaded: {first_lines(error)}") from error
    if architecture.inputs is not None:
        tokenizer.model_input_names = list(architecture.inputs)
    if architecture.padding_side is not None:
        tokenizer.padding_side = architecture.padding_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = architecture.pad_token or tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"{name}: its tokenizer has no pad token, so no batch can be made; name one in its files.")
    ids = tokenizer(prepare_text(PROBE, architecture), add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise UserError(
            f"{name}: its tokenizer does not know DNA, {PROBE} holds unknown tokens; give a model of DNA, with its "
            "own tokenizer."
        )
    return tokenizer


def _check_tokenizer_file(path: Path):
    """Before `tokenizers` reads it, which raises bare Exceptions, with transformers 4."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError("tokenizer.json holds no vocabulary")


def load_classifier(
    name: str | Path,
    architecture: Architecture,
    *,
    problem_type: str,
    labels: dict[str, dict],
    trust_remote_code: bool = False,
    **kwargs,
):
    """
    The model with a classification head for `labels`, which is new and random wherever the checkpoint's has another
    shape or there is none.

    Args:
        problem_type: of transformers: "single_label_classification", "multi_label_classification" or "regression".
        labels: `id2label` and `label2id`; more values of the configuration may stand beside them.
        kwargs: for `from_pretrained` (`dtype`, `attn_implementation`, ...).

    Raises:
        UserError: if there is no such model, its code is not trusted, needs packages that are not installed or does
            not run with this transformers, or the weights lack any part but the head.
    """
    name = locate(name)
    values = {"problem_type": problem_type, **labels}
    loading = {"output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
    if architecture.code == "ours":
        model, info = load_model("DNABert2ForSequenceClassification", name, **values, **loading)
    else:
        model, info = _load_foreign(name, architecture, values, loading, trust_remote_code)
    _refuse_new_weights(name, architecture, model, info)
    save_apart(model)
    return model


def load_trained_classifier(name: str | Path, architecture: Architecture, trust_remote_code: bool = False, **kwargs):
    """
    A classifier as it was trained, with its head and its labels; arguments as `load_classifier`.

    Raises:
        UserError: as `load_classifier`, and if the head is not in the checkpoint.
    """
    name = locate(name)
    loading = {"output_loading_info": True, **kwargs}
    if architecture.code == "ours":
        class_name = "DNABert2ForTokenClassification" if _labels_tokens(name) else "DNABert2ForSequenceClassification"
        with no_loading_report():
            model, info = load_model(class_name, name, **loading)
    else:
        model, info = _load_foreign(name, architecture, {}, loading, trust_remote_code)
    heads = head_modules(architecture, model)
    lacking = sorted(key for key in info["missing_keys"] if any(in_module(key, head) for head in heads))
    if lacking:
        raise UserError(
            f"{name}: its checkpoint has no trained classifier ({lacking[0]} is missing); give the output folder of "
            "`dnabert2 finetune`."
        )
    _refuse_new_weights(name, architecture, model, info)
    return model


def _labels_tokens(name: str) -> bool:
    config = _read_config(name)
    trained_as = (config.get("architectures") or [""])[0]
    return bool(config.get("bases_per_token")) or trained_as.endswith("ForTokenClassification")


def _load_foreign(name: str, architecture: Architecture, values: dict, loading: dict, trust_remote_code: bool):
    described = _read_config(name)
    _check_trust(name, architecture, described, trust_remote_code)
    lacking = [package for package in architecture.packages if importlib.util.find_spec(package) is None]
    if lacking:
        raise UserError(
            f"{name}: the code of {architecture.name} imports {', '.join(lacking)}, which is not installed; pip "
            f"install {' '.join(lacking).replace('_', '-')}, on a machine that it runs on."
        )
    trusted = architecture.runs_code(trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trusted)
        for key, value in values.items():
            setattr(config, key, value)
        if not trusted:  # what is saved would name code that it was not trained with
            vars(config).pop("auto_map", None)
        # transformers 5 gives code on the Hub no default for it.
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = architecture.pad_token_id
        model_class, options = _classifier_class(name, architecture, described, trusted)
        with checkpoint_errors(name):
            return model_class.from_pretrained(name, config=config, **options, **loading)
    except OUTDATED as error:
        raise UserError(
            f"{name}: its code does not run with transformers {transformers.__version__} and the packages installed "
            f"here ({first_lines(error)}); install what it was written for."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: cannot be loaded as a sequence classifier: {first_lines(error)}") from error


def _classifier_class(name: str, architecture: Architecture, config: dict, trusted: bool) -> tuple[type, dict]:
    """The class to load with, and options for that; `auto_map` may not name a classifier that its modules hold."""
    modules = config.get("auto_map") or {}
    model = next((module for auto, module in modules.items() if auto.startswith("AutoModel")), None)
    if architecture.class_name is None or CLASSIFIER in modules or model is None:
        return AutoModelForSequenceClassification, {"trust_remote_code": trusted}
    found = get_class_from_dynamic_module(f"{model.rpartition('.')[0]}.{architecture.class_name}", name)
    found.register_for_auto_class(CLASSIFIER)  # so that its code is saved with it, and named in auto_map
    return found, {}


def _refuse_new_weights(name: str, architecture: Architecture, model, info: dict):
    """transformers starts what a checkpoint lacks from random numbers and only warns of it."""
    # transformers 5 gives the shapes beside the name of a weight that does not fit.
    new = [key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])]
    heads = [*head_modules(architecture, model), "pooler"]
    weights = dict(model.named_parameters())
    lacking = sorted(key for key in new if key in weights and not any(in_module(key, head) for head in heads))
    if lacking:
        raise UserError(
            f"{name}: {len(lacking)} weights of {type(model).__name__} are not in its checkpoint or have other shapes "
            f"(the first is {lacking[0]}); the model has another architecture, or its files are incomplete."
        )


def head_modules(architecture: Architecture, model) -> list[str]:
    """
    Ends of the names of the modules that a classifier has and a pre-trained network lacks: to be trained and saved
    whole.

    Raises:
        UserError: if the model has none that is known.
    """
    names = architecture.head
    if names is None:
        base = getattr(model, model.base_model_prefix, None)
        if base is None or base is model:
            names = HEAD_NAMES
        else:
            names = [name for name, child in model.named_children() if child is not base]
            names.append("pooler")
    with_weights = [path for path, module in model.named_modules() if next(module.parameters(), None) is not None]
    found = [name for name in names if any(_ends(path, name) for path in with_weights)]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no classification head that is known ({', '.join(names)}); give a sequence "
            "classifier."
        )
    return found


def lora_targets(architecture: Architecture, model) -> list[str]:
    """
    Ends of the names of the linear layers that adapters go on, none of them in the head.

    Raises:
        UserError: if the model has no such layer.
    """
    heads = head_modules(architecture, model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(in_module(name, head) for head in heads)
    ]
    targets = linear if architecture.lora is None else architecture.lora
    found = [target for target in targets if any(_ends(name, target) for name in linear)]
    if not found:
        raise UserError(
            f"{type(model).__name__} has none of the layers {', '.join(targets) or 'of torch.nn.Linear'} outside its "
            "head, so LoRA has nothing to adapt; train all of it."
        )
    return found


def switch_off_fused(architecture: Architecture, model):
    """Switch the path off that reads weights past the adapters around them."""
    if architecture.lora_switches_off is None:
        return
    for module in model.modules():
        if hasattr(module, architecture.lora_switches_off):
            setattr(module, architecture.lora_switches_off, False)


def in_module(name: str, module: str) -> bool:
    """Whether a parameter or module lies in one whose name ends so."""
    return f".{module}." in f".{name}."


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
