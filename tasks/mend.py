"""mend: what a process that died left half written of DVC's own files; plain `dvc` commands refuse everything until then."""

from __future__ import annotations

import sys
from pathlib import Path

from headstart.core.errors import guarded
from headstart.core.stages import command_line
from headstart.versioning import workspace


def main() -> int:
    with workspace(Path.cwd()):
        return 0  # the flow enters it too


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
