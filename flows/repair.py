"""`python -m flows.repair`: repair DVC's own files that a process left half written when it died.

Run it before a plain `dvc` command. Like the flow, it fails where `dvc repro` would delete the user's own files: DVC removes
outs before a stage runs.
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
    with workspace(root):  # entering it repairs; the flow enters it too
        refuse_foreign(root, load_params(root / "params.yaml").data.builtin)
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
