"""Errors that the user can put right. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
from collections.abc import Iterable, Iterator

from headstart.core.text import printable

logger = logging.getLogger("headstart")


class InputError(ValueError):
    """A wrong parameter, file or environment. The message says what was found, what was wanted, and what to do.

    Args:
        found: what is wrong, naming the path or the key.
        wanted: what would have been right.
        fix: what to do about it.
    """

    def __init__(self, found: str, *, wanted: str = "", fix: str = "") -> None:
        lines = [found]
        if wanted:
            lines.append(f"  wanted: {wanted}")
        if fix:
            lines.append(f"  to do:  {fix}")
        super().__init__("\n".join(lines))


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the name of a file or folder before the message of an InputError that leaves the block."""
    try:
        yield
    except InputError as error:
        error.args = (f"{place}: {error}",)
        raise


def require_columns(place: str, wanted: Iterable[str], present: Iterable[object], *, rule: str = "", fix: str = "") -> None:
    """Refuse a table that lacks columns.

    Args:
        place: where the names are from, such as a file with its row, or a parameter.
        wanted, present: names of columns.
        rule, fix: `wanted` and `fix` of the error.

    Raises:
        InputError: a column is missing; the message names it and what is there.
    """
    names = [str(name) for name in present]
    missing = [name for name in wanted if name not in names]
    if missing:
        said, found = (printable(", ".join(some)) for some in (missing, names))
        raise InputError(f"{place}: no column {said}; columns found: {found or 'none'}", wanted=rule, fix=fix)


class OfTheMachine(InputError):
    """A fault of the machine and not of the input, such as a full disk or a server that does not answer."""


class Unavailable(OfTheMachine):
    """Something that may be available later, such as a server or a lock that another process holds."""


# Faults of the machine or of a network file system, not of the input.
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "EINTR", "EIO", "EMFILE", "ENETDOWN",
        "ENETUNREACH", "ENFILE", "ENOBUFS", "EPIPE", "ESTALE", "ETIMEDOUT", "ETXTBSY",
    )
)  # fmt: skip


def is_transient(error: BaseException | None) -> bool:
    """Return whether a retry may help. It never does with bad input."""
    return isinstance(error, Unavailable) or (isinstance(error, OSError) and error.errno in PASSING)


EXPLAINED = (InputError, OSError, MemoryError, ImportError, RuntimeError)  # `explain` knows some of them
# How libraries, the loader of shared libraries and threads report that memory or address space has run out.
NO_MEMORY = ("failed to map", "cannot allocate memory", "can't allocate memory", "not enough memory", "start new thread")


def address_space_limit() -> str:
    """Return the limit of this process's address space (`ulimit -v`), such as "6.1 GB", or an empty string if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f"{limit / 1e9:.2g} GB"


def _lacks_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, EXPLAINED) and any(words in said for words in NO_MEMORY))


def is_shutdown(kind: type[BaseException] | None) -> bool:
    """Return whether a block ended because the process is to stop (SystemExit, KeyboardInterrupt, TerminationSignal)."""
    return kind is not None and not issubclass(kind, Exception)


def explain(error: BaseException) -> str | None:
    """Return a one-screen text for an error that a user can put right, or None for a bug of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return (
            f"cannot write or read {error.filename or 'a file of this project'}: {error.strerror}\n"
            "  to do:  free space or correct the permissions, then run again; finished stages are kept"
        )
    if _lacks_memory(error):
        limit = address_space_limit() or "none"
        return (
            f"no memory is left for this process (`ulimit -v`: {limit}): {str(error)[-200:] or 'MemoryError'}\n"
            "  wanted: memory for the network (`free -h`), and no limit on the address space (libraries reserve much)\n"
            "  to do:  ulimit -v unlimited, or a smaller batch_size; then run again: finished stages are kept"
        )
    return None
