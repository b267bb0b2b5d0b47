"""A new network's configuration, from what the user gave as `--config_overrides`."""

import json

from ..errors import UserError


def new_config(config_class, overrides: dict | str, **defaults):
    """
    An instance of `config_class`, with `overrides` (a dictionary, or a JSON object as text) before `defaults`.

    Raises:
        UserError: if that is no JSON object, a name is unknown or a value is refused.
    """
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except json.JSONDecodeError as error:
            raise UserError(f"--config_overrides is not a JSON object ({error}).") from error
    if not isinstance(overrides, dict):
        raise UserError("--config_overrides is not a JSON object.")
    unknown = sorted(set(overrides) - set(config_class().to_dict()))
    if unknown:
        raise UserError(f"--config_overrides: {unknown[0]!r} is no value of DNABert2Config; correct its spelling.")
    try:
        return config_class(**{**defaults, **overrides})
    except (ValueError, TypeError) as error:
        raise UserError(f"--config_overrides: {error}") from error
