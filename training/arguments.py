"""Options of the training verbs: dataclasses from flags, or from one lone .json or .yaml file."""

import json
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..errors import UserError


def parse_options(dataclasses: tuple[type, ...], argv: list[str], description: str) -> tuple:
    """
    One instance of each dataclass.

    Args:
        argv: flags, and at most one .json or .yaml file with a whole configuration, alone in the first place or behind
            `--config`; flags beside it change single values.

    Raises:
        UserError: for a file or a value that cannot be used.
    """
    parser = HfArgumentParser(dataclasses, description=description)
    path, argv = _configuration_file(argv)
    if path is not None:
        settings = read_settings(path)
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise UserError(f"{path}: there is no option {unknown[0]!r} of this verb; `--help` lists them.")
        for action in parser._actions:  # argparse looks at what is typed, not at defaults
            value = settings.get(action.dest)
            if action.choices is not None and value is not None and value not in action.choices:
                raise UserError(
                    f"{path}: {action.dest} is {value!r}; it must be one of {', '.join(map(str, action.choices))}."
                )
        # Options that must be given are given, if the file gives them.
        for action in parser._actions:
            action.required = action.required and action.dest not in settings
        parser.set_defaults(**settings)
    try:
        return parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    except (ValueError, TypeError, RuntimeError) as error:  # the last for devices that are not there
        raise UserError(f"the options cannot be used: {error}") from error


def parse_values(dataclasses: tuple[type, ...], values: dict) -> tuple:
    """
    One instance of each dataclass from settings as a program has them; those that are None keep their defaults.

    Raises:
        UserError: for an unknown setting, or a value of another type or not among the choices.
    """
    parser = HfArgumentParser(dataclasses)

    def refuse(message: str):
        raise UserError(f"the options cannot be used: {message}.")

    parser.error = refuse
    words = []
    for key, value in values.items():
        if value is not None:
            words.append(f"--{key}")
            words += map(_word, value) if isinstance(value, list | tuple) else [_word(value)]
    try:
        return parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the options cannot be used: {error}") from error


def refuse_below(groups: tuple, least: dict[str, int]):
    """Raise UserError for an option that is below its least value; one that is None or not in `groups` is fine."""
    values = {name: value for group in groups for name, value in vars(group).items()}
    for name, lowest in least.items():
        if values.get(name) is not None and values[name] < lowest:
            raise UserError(f"--{name} {values[name]}: must be at least {lowest}.")


def _word(value) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _configuration_file(argv: list[str]) -> tuple[Path | None, list[str]]:
    if "--config" in argv:
        place = argv.index("--config")
        if place + 1 == len(argv):
            raise UserError("--config names no file; give a .json or .yaml file behind it.")
        return Path(argv[place + 1]), argv[:place] + argv[place + 2 :]
    if argv and argv[0].endswith((".json", ".yaml", ".yml")):
        return Path(argv[0]), argv[1:]
    return None, argv


def read_settings(path: Path) -> dict:
    """The mapping in a .json or .yaml file; raises UserError if there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    # Not JSON as YAML, which reads 1e-06 as text.
    parse = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        settings = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"{path}: not a configuration, neither JSON nor YAML ({' '.join(str(error).split())})."
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no mapping of options to values.")
    return settings
