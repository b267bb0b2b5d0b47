"""The network's code as a Hub folder carries it: flat modules, with two import prefixes rewritten and nothing else."""

import json
from pathlib import Path

from .atomic import write_whole
from .errors import UserError

ROOT = Path(__file__).parent


def write_code(folder: str | Path) -> list[Path]:
    """
    Write the network's code into `folder` as flat modules, one of each source file.

    Returns:
        The files written.
    """
    sources, names = _sources(), code_names()
    assert len(set(names)) == len(names), f"exported modules must have unique names: {names}"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources:
        text = path.read_text(encoding="utf-8")
        write_whole(folder / path.name, text.replace("from .bert_layers.", "from .").replace("from ..", "from ."))
    return [folder / name for name in names]


def code_names() -> list[str]:
    """The names of the files that `write_code` writes."""
    return [path.name for path in _sources()]


def _sources() -> list[Path]:
    sources = [ROOT / "configuration_dnabert2.py", ROOT / "modeling_dnabert2.py"]
    return sources + sorted(path for path in (ROOT / "bert_layers").glob("*.py") if path.name != "__init__.py")


def make_self_contained(folder: str | Path):
    """
    Make a folder that `save_pretrained` or the Trainer wrote load where our package is unknown.

    Writes the code, points `auto_map` in its `config.json` at it, and names the tokenizer's class, if there is a
    tokenizer, as transformers 4 and 5 both know it. Each file is replaced whole. Safe to call again.

    Raises:
        UserError: if the folder has no `config.json`.
    """
    from .modeling_dnabert2 import AUTO_MAP

    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no config.json in it; save the model there first.")
    write_code(folder)
    _update_json(config, {"auto_map": dict(AUTO_MAP)})
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.is_file():
        _update_json(
            tokenizer_config, {}, rename={"TokenizersBackend": "PreTrainedTokenizerFast"}
        )  # transformers 5's name


def _update_json(path: Path, values: dict, rename: dict | None = None):
    """Set top-level `values` of a JSON file and exchange top-level values that `rename` names; the rest stays."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in content.items():
        if isinstance(value, str):
            content[key] = (rename or {}).get(value, value)
    write_whole(path, json.dumps({**content, **values}, indent=2, ensure_ascii=False) + "\n")
