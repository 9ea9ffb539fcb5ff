"""Find the target that a file or a model's card describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.core.errors import InputError
from headstart.targets.multi_label import MultiLabel
from headstart.targets.number import Number
from headstart.targets.single_label import SingleLabel
from headstart.targets.target import Target

KINDS = {"single_label": SingleLabel, "multi_label": MultiLabel, "number": Number}


def target_of(described: Mapping[str, Any]) -> Target:
    """Return the target that `Target.as_dict` or `LabelFormat.describe` described.

    Raises:
        KeyError, TypeError: it describes none.
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items() if name != "kind"}
    target: Target = KINDS[described["kind"]](**fields)
    return target


def read_target(path: Path) -> Target:
    """Read data/target.json.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return target_of(json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run link_data first, or the whole pipeline") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "python -m flows.pipeline --force link_data"
        raise InputError(f"{path}: damaged: {type(error).__name__}", fix=fix) from None
