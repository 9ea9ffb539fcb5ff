"""Types of command-line options, for argparse's `type=`: a wrong value is refused before any work."""

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


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from `low` to `high` (None: any larger one up to what a database holds)."""
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
    """A finite number from `low` (or above it) to `most`."""

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
    """A path. `~` is expanded here, since no shell does so after a `=`."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a path")
    return Path(os.path.expanduser(text))


def check_out(out: Path) -> None:
    """Refuse an output file that could not be written, before any work.

    Raises:
        InputError: no such folder, one that cannot be written to, a name that is too long, or something at the file's
            place that is no regular file.
    """
    if not os.path.isdir(out.parent):
        raise InputError(f"{out.parent}: no such folder", fix="make it, or name another --out")
    if len(os.fsencode(out.name)) > MAX_NAME_BYTES:
        raise InputError(f"--out {out.name[:40]}…: a long name", wanted=f"at most {MAX_NAME_BYTES} bytes")
    if os.path.isdir(out):
        raise InputError(f"--out {out}: a folder", wanted="the name of the file to write")
    if os.path.exists(out) and not stat.S_ISREG(os.stat(out).st_mode):
        raise InputError(f"--out {out}: a device, a pipe or a socket", wanted="a regular file, or a name that is free")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be written to ({error.strerror})", fix="name another --out") from None
