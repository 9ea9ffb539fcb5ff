"""`python -m flows.repair`: repair what a process that died left half written of DVC's own files, before a plain `dvc` command.

It also refuses, as the flow does, where `dvc repro` would delete files of the user's: DVC removes outs before a stage runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from headstart.core.command_line import command_line, guarded
from headstart.core.params import load_params
from headstart.datasets.builtin import refuse_foreign
from headstart.versioning import workspace


def main() -> int:
    root = Path.cwd()
    with workspace(root):  # the flow enters it too
        refuse_foreign(root, load_params(root / "params.yaml").data.builtin)
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
