"""The problems of a source: all in one message, with a command that accepts those that can be accepted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.core.errors import InputError


@dataclass(frozen=True)
class Problem:
    """One reason to refuse a source.

    Args:
        found: what is wrong.
        wanted: what is allowed instead.
        fix: what to do in the folder.
        accept: the parameter that accepts the folder as it is, `section.key=value`; empty if none does.
    """

    found: str
    wanted: str = ""
    fix: str = ""
    accept: str = ""


def refuse(root: Path, problems: Sequence[Problem], source: str = "") -> None:
    """Refuse a source for all its problems at once.

    Args:
        source: the value of data.source for the command to set; empty if it is set already.

    Raises:
        InputError: there is at least one problem.
    """
    if len(problems) == 1:
        (one,) = problems
        fix = "; or accept it: ".join(filter(None, (one.fix, accepting(problems, source))))
        raise InputError(one.found, wanted=one.wanted, fix=fix)
    if problems:
        raise InputError(_found(root, problems), fix=accepting(problems, source) or "change the folder, then run again")


def described(root: Path, problems: Sequence[Problem], source: str) -> str:
    """Return the text of `refuse`, for a warning."""
    try:
        refuse(root, problems, source)
    except InputError as error:
        return str(error)
    return ""


def accepting(problems: Sequence[Problem], source: str = "") -> str:
    """Return the one command that accepts all problems that can be accepted, or an empty string."""
    accepted = list(dict.fromkeys(problem.accept for problem in problems if problem.accept))
    if not accepted:
        return ""
    settings = [*([f"data.source={source}"] if source else []), *accepted]
    return f"python -m flows.pipeline --set {' '.join(map(shlex.quote, settings))}"


def _found(root: Path, problems: Sequence[Problem]) -> str:
    lines = [f"{root}: {len(problems)} problems must be solved first"]
    for number, problem in enumerate(problems, start=1):
        lines.append(f"{number}. {problem.found}")
        lines += [f"  {name}: {text}" for name, text in (("wanted", problem.wanted), ("to do", problem.fix)) if text]
    stay = [str(number) for number, problem in enumerate(problems, start=1) if not problem.accept]
    if stay and accepting(problems):
        lines.append(f"The command below accepts all but {', '.join(stay)}, for which the folder itself must be changed first.")
    return "\n".join(lines)
