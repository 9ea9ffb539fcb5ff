"""Finish uv's lock for pip: a package locked with extras gets a second entry without them.

pip resolves `sqlalchemy` and `sqlalchemy[asyncio]` as two things, and in hash mode wants each of them pinned.
"""

import re
import sys
from pathlib import Path


def without_extras(block: str) -> str:
    """The entry of a package with extras once more, without them; nothing for any other text."""
    plain, found = re.subn(r"^([\w.-]+)\[[^]]*\](?===)", r"\1", block)
    return plain if found else ""


path = Path(sys.argv[1])
entries = re.split(r"^(?=\S)", path.read_text(), flags=re.MULTILINE)
path.write_text("".join(without_extras(entry) + entry for entry in entries))
