"""Files of a checkpoint: what goes wrong when one is read, and the code that travels beside one that is saved."""

import pickle
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

# New layers that a checkpoint may lack; the embeddings and the encoder it may not.
NEW_LAYERS = ("pooler.", "classifier.", "cls.")


@contextmanager
def checkpoint_errors(name):
    """Turns the various errors of unreadable weight files into one OSError that names the checkpoint and the way out."""
    try:
        yield
    except Exception as error:
        if not _says_damaged(error):
            raise
        raise OSError(f"{name}: the weight file is damaged or cut short ({error}); download or copy it again.") from error


def _says_damaged(error: Exception) -> bool:
    if isinstance(error, (pickle.UnpicklingError, EOFError, zipfile.BadZipFile)):
        return True
    # By name: code on the Hub may import torch and transformers and nothing else.
    return type(error).__name__ == "SafetensorError" or any(
        sign in str(error) for sign in ("PytorchStreamReader", "unexpected EOF", "Unable to load weights")
    )


def refuse_foreign_weights(name, missing_keys):
    """Raise OSError if a checkpoint lacked any weight of the embeddings or the encoder."""
    lacking = sorted(key for key in missing_keys if not key.removeprefix("bert.").startswith(NEW_LAYERS))
    if lacking:
        raise OSError(
            f"{name}: the checkpoint lacks {len(lacking)} weights of the DNABERT-2 encoder (the first is {lacking[0]}); "
            "it belongs to another model or is incomplete."
        )


def save_code_beside(module_file: str, folder) -> bool:
    """
    Copy the Python files next to `module_file` into `folder`, if they are a flat Hub folder.

    In the source tree, where the parts lie in a sub-package, nothing is copied: `dnabert2 export` builds the Hub folder.

    Returns:
        True if `module_file` is part of a Hub folder.
    """
    source = Path(module_file).parent
    if (source / "bert_layers").is_dir():
        return False
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.py"):
        if path.name != "__init__.py" and path.resolve() != (target / path.name).resolve():
            shutil.copyfile(path, target / path.name)
    return True
