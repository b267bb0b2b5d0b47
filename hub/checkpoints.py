"""Read a checkpoint, ours or one of the published layout, into the class it was saved from, and refuse anything else.

    model = load_checkpoint(Path("runs/promoters"))

Unlike `from_pretrained` this never invents a weight: a checkpoint that lacks one or has one too many is refused.
"""

import functools
import json
import pickle
from pathlib import Path

from ..errors import UserError

PREFIXES = ("DNABert2", "Bert")  # of class names in `config.architectures`, ours and the published ones
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
HEAD_KEYS = ("cls.", "classifier.")
# What a checkpoint may hold without the class using it: another class's head, buffers of older code.
SPARE_KEYS = ("pooler.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids", "encoder.alibi")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PUBLISHED = "zhihan1996/DNABERT-2-117M"
LFS_POINTER = b"version https://git-lfs"


def load_checkpoint(folder: Path):
    """
    The model saved in `folder`, in evaluation mode, on the CPU, in the dtype of its weights.

    The class is the one that `architectures` in `config.json` names, and without it the one that the keys speak for.
    Keys may carry the `bert.` prefix or not. A base model without pooler is loaded without one.

    Raises:
        UserError: if the folder is no model, its weights are damaged, or they are another model's.
    """
    from .. import modeling_dnabert2

    config = read_config(folder)
    weights = read_weights(folder)
    head = _head(folder, config, weights)
    weights = {_published_key(key, head): value for key, value in weights.items()}
    arguments = {"add_pooling_layer": "pooler.dense.weight" in weights} if head == "Model" else {}
    _settle_ties(config, weights, head)
    model = getattr(modeling_dnabert2, f"DNABert2{head}")(config, **arguments)
    _check_weights(folder, model.state_dict(), weights)
    # assign=True: parameters become the tensors as they are, in their own dtype.
    model.load_state_dict({key: weights[key] for key in model.state_dict()}, assign=True)
    model.tie_weights()
    return model.eval()


def read_config(folder: Path):
    """The `DNABert2Config` of a folder, ours or published. Raises UserError if there is none or it cannot be used."""
    from ..configuration_dnabert2 import DNABert2Config

    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json in it, so this is no model; name the folder a model was saved to.")
    try:
        return DNABert2Config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a DNABERT-2 configuration ({error}); copy it again or mend it.") from error


def read_weights(folder: Path) -> dict:
    """
    Name -> tensor of all weights in a folder, from safetensors if there are any, else from `pytorch_model.bin`.

    Floating-point tensors of several dtypes are promoted to the widest, which keeps their values.

    Raises:
        UserError: if there are none or a file is damaged.
    """
    import torch

    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [folder / name]
        elif index.is_file():  # a large model saved in shards
            files = _shards(index)
        else:
            continue
        weights = {key: value for path in files for key, value in _read_tensors(path).items()}
        dtypes = {x.dtype for x in weights.values() if x.is_floating_point()}
        widest = functools.reduce(torch.promote_types, dtypes, next(iter(dtypes), None))
        return {key: x.to(widest) if x.is_floating_point() else x for key, x in weights.items()}
    raise UserError(f"{folder}: no weights in it ({' or '.join(WEIGHT_FILES)}); copy them beside config.json.")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of weight files ({error}); copy the whole folder again.") from error
    return [index.parent / name for name in sorted(names)]


def _read_tensors(path: Path) -> dict:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as handle:
            if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder.")
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing, but the index names it; copy the whole folder again.") from error
    # torch.load raises plain RuntimeError for a zip file cut short.
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: the weight file is damaged, cut short, or holds more than tensors ({_first_line(error)}); "
            "download or copy it again."
        ) from error
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        raise UserError(f"{path}: not a table of named tensors; save the model with save_pretrained().")
    return tensors


def _head(folder: Path, config, weights: dict) -> str:
    """One of HEADS, from the name in `config.architectures`, or from the keys."""
    if config.architectures:
        name = config.architectures[0]
        head = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)
        if head not in HEADS:
            known = ", ".join(f"{PREFIXES[0]}{head}" for head in HEADS)
            raise UserError(f"{folder}: config.json names the architecture {name}, but only these are known: {known}.")
        return head
    if any(key.startswith("cls.") for key in weights):
        return "ForMaskedLM"
    if any(key.startswith("classifier.") for key in weights):
        pooled = any(key.removeprefix("bert.").startswith("pooler.") for key in weights)
        return "ForSequenceClassification" if pooled else "ForTokenClassification"
    return "Model"


def _published_key(key: str, head: str) -> str:
    key = key.removeprefix("bert.")
    return key if head == "Model" or key.startswith(HEAD_KEYS) else f"bert.{key}"


def _settle_ties(config, weights: dict, head: str):
    """Fill in the tied decoder, which safetensors leaves out; a decoder that was trained apart stays apart."""
    decoder, embeddings = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    if head != "ForMaskedLM" or not config.tie_word_embeddings or embeddings not in weights:
        return
    import torch

    if decoder not in weights:
        weights[decoder] = weights[embeddings]
    config.tie_word_embeddings = torch.equal(weights[decoder], weights[embeddings])


def _check_weights(folder: Path, expected: dict, weights: dict):
    missing = [key for key in expected if key not in weights]
    spare = [key for key in weights if key not in expected and not key.removeprefix("bert.").startswith(SPARE_KEYS)]
    wrong = [key for key, x in expected.items() if key in weights and not _fits(weights[key], x)]
    if missing:
        problem = f"lacks {len(missing)} weights, the first is {missing[0]}"
    elif spare:
        problem = f"holds {len(spare)} weights that have no place in this network, the first is {spare[0]}"
    elif wrong:
        found, asked = weights[wrong[0]], tuple(expected[wrong[0]].shape)
        problem = f"has {wrong[0]} as {found.dtype} {tuple(found.shape)} where config.json asks for floats {asked}"
    else:
        return
    raise UserError(
        f"{folder}: the checkpoint {problem}; it belongs to another model or is incomplete: give a DNABERT-2 "
        "checkpoint with the config.json it was saved with."
    )


def _fits(tensor, expected) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point()


def check_tokenizer(folder: Path, config) -> Path:
    """
    The path of a folder's `tokenizer.json`, once it is known to fit the model.

    Raises:
        UserError: if there is none, it cannot be read, or its special tokens or vocabulary are not the model's.
    """
    from tokenizers import Tokenizer

    from ..tokenizer.files import SPECIAL_TOKENS

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no tokenizer.json in it; copy the one of the model it was trained from into the folder "
            f"(the published one is at https://huggingface.co/{PUBLISHED})."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{path}: not a tokenizer ({_first_line(error)}); copy it again.") from error
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{path}: {tokenizer.get_vocab_size()} tokens, but the model has embeddings for {config.vocab_size}; use "
            "the tokenizer it was trained with."
        )
    for token in SPECIAL_TOKENS:
        found, wanted = tokenizer.token_to_id(token), getattr(config, f"{token[1:-1].lower()}_token_id")
        if found is None or (wanted is not None and found != wanted):
            raise UserError(
                f"{path}: {token} has id {found}, but config.json says {wanted}; use the tokenizer it was trained "
                "with."
            )
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
