"""Types for argparse's `type=`, which refuse a wrong value before any work begins, and options that commands share."""

from __future__ import annotations

import argparse
import math
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from headstart.core.errors import InputError

MAX_NAME_BYTES = 200  # file systems allow 255, and temporary names are longer


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model` to a command that uses a trained model; `flows.predict.model_of` finds it."""
    parser.add_argument(
        "--model",
        default="champion",
        metavar="ALIAS|RUN|FILE",
        help="champion, challenger, a version's number, a run's id, or a .safetensors file",
    )


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high` (None: the largest that a database holds)."""
    top = 2**31 - 1 if high is None else high

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= top:
            raise argparse.ArgumentTypeError(
                f"{text!r}: wanted a whole number of {low} or more"
                if high is None
                else f"{text!r}: wanted a whole number from {low} to {high}"
            )
        return value

    return parse


port = whole(1, 65535)


def number(low: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """Return a parser of finite numbers from `low` to `most`; `above` excludes `low` itself."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= most) or (above and value == low):
            start = f"above {low:g}" if above else f"of {low:g} or more" if most == math.inf else f"from {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r}: wanted a number {start}{'' if most == math.inf else f' to {most:g}'}")
        return value

    return parse


def path(text: str) -> Path:
    """Return the text as a path. It expands `~`, because no shell does so after a `=`."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a path")
    return Path(os.path.expanduser(text))


def check_out(out: Path) -> None:
    """Refuse an output file that could not be written, before any work begins.

    Raises:
        InputError: the folder is missing or cannot be written to, the name is too long, or it already names something
            other than a regular file.
    """
    if not os.path.isdir(out.parent):
        raise InputError(f"{out.parent}: no such folder", fix="create it, or choose another --out")
    if len(os.fsencode(out.name)) > MAX_NAME_BYTES:
        raise InputError(f"--out {out.name[:40]}…: the name is too long", wanted=f"at most {MAX_NAME_BYTES} bytes")
    if os.path.isdir(out):
        raise InputError(f"--out {out}: a folder", wanted="the name of the file to write")
    if os.path.exists(out) and not stat.S_ISREG(os.stat(out).st_mode):
        raise InputError(f"--out {out}: a device, a pipe or a socket", wanted="a regular file, or a name not in use yet")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be written to ({error.strerror})", fix="choose another --out") from None
