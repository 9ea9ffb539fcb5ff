"""`python -m flows.export --out model.pt2 [--model champion]`: write the model as one file that runs without this project."""

from __future__ import annotations

import argparse
import logging
import sys

from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError
from headstart.prediction.export import export

from flows.arguments import add_model, check_out, path
from flows.predict import model_of

logger = logging.getLogger("headstart")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.export", description="Write the model as one .pt2 file.")
    parser.add_argument("--out", required=True, type=path, metavar="FILE.pt2", help="the file to write")
    add_model(parser)
    options = parser.parse_args()
    check_out(options.out)
    if options.out.suffix != ".pt2":
        raise InputError(f"--out {options.out}", wanted="a file that ends in .pt2")
    about = export(model_of(options.model), options.out)
    logger.info("wrote %s, checked against the model; input: %s", options.out, about["input"])
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
