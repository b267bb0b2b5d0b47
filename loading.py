"""Models and their configurations by name: a local folder or a Hub id, ours or in the published layout."""

from pathlib import Path

from .bundled import locate
from .errors import UserError


def load_model(class_name: str | type, name: str, **kwargs):
    """
    Load a model with one of our classes.

    Args:
        class_name: "DNABert2Model", "DNABert2ForMaskedLM", "DNABert2ForSequenceClassification" or
            "DNABert2ForTokenClassification"; or a class that is built on them.
        name: a folder with `config.json` and weights, a Hub id, or the name of a bundled checkpoint.
        kwargs: for `from_pretrained` (`num_labels`, `dtype`, `attn_implementation`, ...).

    Raises:
        UserError: if there is no such folder or repository, it is not a DNABERT-2 model, or its weights are damaged.
    """
    from . import modeling_dnabert2

    name = locate(name)
    check_name(name)
    model_class = getattr(modeling_dnabert2, class_name) if isinstance(class_name, str) else class_name
    try:
        return model_class.from_pretrained(name, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: cannot be loaded as a DNABERT-2 model: {first_lines(error)}") from error


def check_name(name: str):
    """Raises UserError if `name` is neither a model folder nor, by its form, a Hub id."""
    path = Path(name)
    if path.is_file():
        raise UserError(f"{path}: is a file; give the folder that holds config.json and the weights.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{path}: not a model folder, it has no config.json; give a folder written by save_pretrained."
        )
    if not path.exists() and (path.is_absolute() or name.count("/") != 1):
        raise UserError(f"{name}: no such folder; give a model folder or a Hub id such as user/model.")


def first_lines(error: Exception) -> str:
    """transformers explains at length; the first lines say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
