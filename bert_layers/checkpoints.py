"""Files of a checkpoint: what goes wrong when one is read, and the code that travels beside one that is saved."""

import errno
import pickle
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

# New layers that a checkpoint may lack; the embeddings and the encoder it may not.
NEW_LAYERS = ("pooler.", "classifier.", "cls.")


@contextmanager
def checkpoint_errors(name):
    """Turns the errors of unreadable weight files into one OSError that names the checkpoint and the way out."""
    try:
        yield
    except Exception as error:
        if not _says_damaged(error):
            raise
        # The first sentence: PyTorch goes on to recommend loading the file without weights_only.
        reason = str(error).split(". ")[0].strip() or type(error).__name__
        raise OSError(
            f"{name}: the weight file is damaged or cut short ({reason}); download or copy it again."
        ) from error


def _says_damaged(error: Exception) -> bool:
    if isinstance(error, (pickle.UnpicklingError, EOFError, zipfile.BadZipFile)):
        return True
    if isinstance(error, OSError) and error.errno == errno.EINVAL:  # PyTorch maps a file that ends too early
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
            f"{name}: the checkpoint lacks {len(lacking)} weights of the DNABERT-2 encoder (the first is "
            f"{lacking[0]}); "
            "it belongs to another model or is incomplete."
        )


def refuse_other_shapes(name, mismatched_keys):
    """Raise RuntimeError, as transformers does, if weights have other shapes than the configuration asks for."""
    # transformers 5 gives the shapes beside each name.
    names = sorted(key if isinstance(key, str) else key[0] for key in mismatched_keys)
    if names:
        raise RuntimeError(
            f"{name}: weights of the checkpoint have other shapes than the configuration asks for ({len(names)}; "
            f"the first is {names[0]}): load it with the configuration it was saved with, or pass "
            "ignore_mismatched_sizes=True to start them anew."
        )


def save_code_beside(module_file: str, folder) -> bool:
    """
    Copy `module_file` and the modules it imports from beside it into `folder`, if they are a flat Hub folder.

    In the source tree, where the parts lie in a sub-package, nothing is copied: `dnabert2 export` builds the Hub
    folder.

    Returns:
        True if `module_file` is part of a Hub folder.
    """
    source = Path(module_file).parent
    if (source / "bert_layers").is_dir():
        return False
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Not all that lies there: transformers 4 caches the code of every local folder of one name in one place.
    for path in map(Path, [module_file, *get_relative_import_files(module_file)]):
        if path.resolve() != (target / path.name).resolve():
            shutil.copyfile(path, target / path.name)
    return True
