"""fetch_data: write a built-in data set to data/NAME, if data.source is that folder."""

from __future__ import annotations

import logging

from headstart.core.command_line import main
from headstart.core.stages import StageContext, Summary
from headstart.datasets.builtin import is_source, refuse_foreign, write_digits, write_oxford_pets

logger = logging.getLogger("headstart")


def fetch_data(context: StageContext) -> Summary:
    """Write `data.builtin` as class folders to data/NAME, or an empty folder (DVC needs one) if data.source is another.

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
    if name == "digits":
        return {"images": write_digits(folder)}
    downloads = context.root / ".headstart" / "downloads"
    return {"images": write_oxford_pets(folder, downloads, by_breed=name.endswith("breeds"))}


if __name__ == "__main__":
    main("fetch_data", fetch_data)
