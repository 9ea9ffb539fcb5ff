"""The process that forked_workers.py forks from imports this: one image is examined, so that nothing is left to be imported."""

import tempfile
from pathlib import Path

from PIL import Image

from headstart.images.decode import FORMATS
from headstart.images.limits import Limits
from headstart.ingest import worker

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "x.png"
    Image.new("RGB", (8, 8), "red").save(path)
    found = worker.with_look(*worker.answer(str(path), Limits(64, 1, list(FORMATS))))
assert "phash" in found
