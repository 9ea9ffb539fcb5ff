"""The start and the end of every command: log lines on stderr, signals, exit codes."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from headstart.core import files, offspring
from headstart.core.errors import EXPLAINED, InputError, explain
from headstart.core.graph import load_graph
from headstart.core.params import Params, load_params
from headstart.core.stages import StageFunction, checkpoints, run_stage

logger = logging.getLogger("headstart")
MOVED = {"--from": "link a folder with: python -m flows.link --from PATH"}


def refuse_optimised() -> None:
    """Refuse a Python that drops assertions, which guard results here, or docstrings, which libraries read.

    Raises:
        InputError: Python was started with -O, -OO or PYTHONOPTIMIZE.
    """
    if sys.flags.optimize:
        raise InputError(
            f"Python runs with optimisation level {sys.flags.optimize} (PYTHONOPTIMIZE or -O): it drops assertions, which guard"
            " results, and from level 2 on docstrings, which libraries read",
            fix="unset PYTHONOPTIMIZE, and start python without -O",
        )


def guarded(main: Callable[[], int]) -> int:
    """Run a command's `main`. An error that a user can put right becomes a message and exit code 2; Ctrl-C gives 130."""
    try:
        refuse_optimised()
        return main()
    except EXPLAINED as error:
        text = explain(error)
        if text is None:
            raise
        sys.stderr.write(f"error: {text}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: finished stages and epochs are kept; run the same command to continue\n")
        return 128 + signal.SIGINT


def main(
    name: str,
    function: StageFunction,
    *,
    options: Sequence[str] = (),
    after: Callable[[Path, Params], object] | None = None,
) -> None:
    """Run a stage in the current folder and exit: the body of `python -m tasks.NAME`.

    Args:
        name: the stage's name in dvc.yaml.
        function: the stage's function.
        options: the command-line options that the stage accepts.
        after: a function to call once the stage's outs are published.
    """

    def run() -> int:
        unknown = [word for word in sys.argv[1:] if word not in options]
        if unknown and sys.argv[0].endswith(f"{name}.py"):
            wanted = f"{', '.join(options) or 'none'}; all other settings are in params.yaml"
            raise InputError(f"tasks.{name}: unknown argument {unknown[0]!r}", wanted=wanted, fix=MOVED.get(unknown[0], ""))
        root = Path.cwd()
        params = load_params(root / "params.yaml")
        record = run_stage(load_graph(root, params)[name], function, root, params)
        files.remove(checkpoints(root, name))
        logger.info("%s done in %.1f s", name, record.seconds)
        if after is not None:
            after(root, params)
        return 0

    command_line()
    sys.exit(guarded(run))


def command_line() -> None:
    """Set up a command's process: our log lines go to stderr, SIGTERM exits cleanly with 143, and no child outlives it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    signal.signal(signal.SIGTERM, _terminate)
    offspring.guard(Path.cwd())


def _terminate(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
