"""fetch_data: write a built-in data set to data/NAME, if data.source is that folder."""

from __future__ import annotations

import logging

from headstart.core.command_line import main
from headstart.core.stages import StageContext, Summary
from headstart.datasets.builtin import WRITERS, is_source, refuse_foreign

logger = logging.getLogger("headstart")


def fetch_data(context: StageContext) -> Summary:
    """Write `data.builtin` to data/NAME, or an empty folder (DVC needs one) if data.source is another.

    Raises:
        InputError: data/NAME holds files that this stage did not write, or a download failed.
    """
    name, source = context.params.data.builtin, context.params.data.source
    refuse_foreign(context.root, name)
    folder = context.output(f"data/{name}")
    if not is_source(context.root, source, name):
        folder.mkdir()
        logger.info("  data.source is %s: the built-in set %s is not needed", source, name)
        return {"images": 0}
    return {"images": WRITERS[name](folder, context.root / ".headstart" / "downloads")}


if __name__ == "__main__":
    main("fetch_data", fetch_data)
