"""A tokenizer's files: how ours are built, written and read."""

import json
import shutil
from pathlib import Path

from ..bundled import locate
from ..errors import UserError

# In id order: [UNK] is 0 and [PAD] is 3, as published.
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
# What every tokenizer of this family is told beside its tokenizer.json: token types for pairs, and no maximum length.
SETTINGS = {
    **dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), SPECIAL_TOKENS, strict=True)),
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    "model_max_length": int(1e30),
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
}
OURS = Path(__file__).parent  # tokenizer.json of this folder is trained by `dnabert2 train-tokenizer`


def wrap_tokenizer(path: str | Path):
    """A `tokenizer.json` as the `PreTrainedTokenizerFast` every user expects."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(path), **SETTINGS)


def write_tokenizer(tokenizer_json: Path, folder: Path):
    """
    Write a tokenizer's files into `folder`: `tokenizer_json` byte for byte, and a configuration both transformers 4
    and 5 read.

    transformers 5 would save its own class name, which transformers 4 does not know; the fast tokenizer's is known to
    both.
    """
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SETTINGS}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "tokenizer.json"
    if tokenizer_json.resolve() != target.resolve():
        shutil.copyfile(tokenizer_json, target)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Left behind by transformers 4; the configuration above says it all.
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def load_tokenizer(name: str | Path):
    """
    The tokenizer of a local folder, of a `tokenizer.json`, of a Hub id, or of a bundled checkpoint.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    name = locate(name)
    path = Path(name)
    try:
        if path.is_file():
            return wrap_tokenizer(path)
        if path.is_dir() and not (path / "tokenizer.json").is_file():
            raise UserError(f"{path}: no tokenizer.json in this folder; copy the tokenizer's files into it.")
        if path.is_dir() and not (path / "tokenizer_config.json").is_file():
            return wrap_tokenizer(path / "tokenizer.json")
        # Not AutoTokenizer: it reads the model's configuration first, and asks whether to trust the code beside it.
        return PreTrainedTokenizerFast.from_pretrained(str(name))
    except Exception as error:
        # `tokenizers` raises bare Exceptions for a file that it cannot make sense of.
        if type(error) is not Exception and not isinstance(error, (OSError, ValueError, KeyError)):
            raise
        raise UserError(f"{name}: no tokenizer could be loaded from it ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing in its tokenizer.json"
    return str(error).splitlines()[0]
