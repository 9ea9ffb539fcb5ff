"""The graph of stages in dvc.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headstart.core.errors import InputError
from headstart.core.params import Params


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, with its templates filled in."""

    name: str
    command: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


def load_graph(root: Path, params: Params) -> dict[str, Stage]:
    """Read the stages of dvc.yaml, by name and in their order.

    Raises:
        InputError: dvc.yaml is missing.
    """
    path = root / "dvc.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such file", fix="run from the project's root")
    document = YAML(typ="safe", pure=True).load(path)
    values = params.model_dump()
    return {name: _stage(name, body, values) for name, body in document["stages"].items()}


def _stage(name: str, body: Mapping[str, Any], values: Mapping[str, Any]) -> Stage:
    outs = [*body.get("outs", ()), *body.get("metrics", ()), *body.get("plots", ())]
    return Stage(
        name=name,
        command=body["cmd"],
        deps=tuple(_fill(dep, values) for dep in body.get("deps", ())),
        params=tuple(body.get("params", ())),
        outs=tuple(_fill(next(iter(out)) if isinstance(out, Mapping) else out, values) for out in outs),
    )


def _fill(text: str, values: Mapping[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        node: Any = values
        for key in match[1].split("."):
            node = node[key]
        return str(node)

    return re.sub(r"\$\{([\w.]+)\}", value, text)
