"""What every reader must keep to on any bytes, and a coverage-guided fuzzer of it: `python -m tests.fuzz [TARGET …]`.

Each target either returns or raises its documented error; anything else is a finding. The fuzzer is Atheris
(libFuzzer); it starts from whole files of each kind and keeps what it finds in .headstart/fuzz.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__" and os.environ.get("HEADSTART_FUZZ"):
    import atheris

    instrumented: contextlib.AbstractContextManager = atheris.instrument_imports(include=["headstart", "PIL"])
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    from headstart.activations.columns import write_columns
    from headstart.activations.store import Activations
    from headstart.core.errors import InputError
    from headstart.core.params import check_params, load_params
    from headstart.images.containers import trailing_bytes
    from headstart.images.decode import Decoded, DecodeError, decode_image
    from headstart.images.examine import LOOK_SIDE, look
    from headstart.ingest.labels import read_labels
    from headstart.ingest.rows import scan_rows
    from headstart.ingest.scan import SplitRule
    from headstart.ingest.tree import preflight
    from headstart.manifest import COLUMNS, ROW_COLUMNS, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parent.parent
MAX_PIXELS = 200_000
SCRATCH = Path(tempfile.mkdtemp(prefix="headstart-fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
for name in ("a/1.png", "a/ü 2.png", "b/3.jpg"):
    (SCRATCH / "source" / name).parent.mkdir(parents=True, exist_ok=True)
    (SCRATCH / "source" / name).touch()
TREE = preflight(SCRATCH / "source")
(SCRATCH / "table").mkdir()
(SCRATCH / "table/labels.csv").write_text("label\n1\n")
(SCRATCH / "table/shops.csv").write_text("shop,size\n0,1.5\n1,2\n2,\n3,x\n")
TABLE = preflight(SCRATCH / "table")
_PARAMS = load_params(ROOT / "params.yaml").model_dump()
_PARAMS["data"] |= {"path_column": "none", "columns": {"categorical": "auto", "continuous": "auto", "date": "auto"}}
_PARAMS["data"] |= {
    "joins": [{"file": "shops.csv", "on": ["shop"]}],
    "elapsed": [{"event": "open", "by": "shop", "date": "date"}],
}
_PARAMS["backbone"]["name"] = "none"
TABLE_PARAMS = check_params(_PARAMS, ROOT / "params.yaml")
RULE = SplitRule(0, 0.2, 0.3, 5, "none")


def decoder(data: bytes) -> None:
    """Whole, reduced and slow decoding agree on what is an image and on its pixels."""

    def outcome(**how: object) -> Decoded | None:
        try:
            return decode_image(data, MAX_PIXELS, **how)
        except DecodeError as error:
            assert str(error)
            return None

    whole, slow, reduced = outcome(), outcome(fast=False), outcome(min_decode_side=LOOK_SIDE)
    assert (whole is None) == (slow is None) == (reduced is None)
    if whole is None or slow is None or reduced is None:
        return
    assert whole.pixels.shape == (whole.height, whole.width, 3) and whole.pixels.dtype == np.uint8
    assert 0 < whole.width * whole.height <= MAX_PIXELS
    assert np.array_equal(whole.pixels, slow.pixels)
    assert (reduced.width, reduced.height, reduced.format, reduced.mode) == (
        whole.width,
        whole.height,
        whole.format,
        whole.mode,
    )
    assert 0 <= trailing_bytes(data, whole.format) <= len(data)
    bits, thumb = look(reduced)
    assert len(bits) == 16 and thumb.shape == (8, 8, 3)


def _file(name: str, data: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def _labels(name: str, data: bytes) -> None:
    path = _file(name, data)
    try:
        found = read_labels(path, TREE)
    except InputError as error:
        assert name in str(error)
        return
    assert len(found.rows) == len(found.extra) == len({row.path for row in found.rows})
    assert all(
        row.path in TREE.files
        and (row.label.strip() or found.format.kind == "multi_label")
        and row.split in ("", "train", "valid", "test")
        for row in found.rows
    )


def labels_csv(data: bytes) -> None:
    """Rows of files that are there, or a refusal that names the file."""
    _labels("labels.csv", data)


def labels_parquet(data: bytes) -> None:
    """The same from Parquet."""
    _labels("labels.parquet", data)


def params(data: bytes) -> None:
    """A checked, complete set of parameters, or a refusal."""
    with contextlib.suppress(InputError):
        assert load_params(_file("params.yaml", data)).model_dump()


def manifest(data: bytes) -> None:
    """A whole manifest, or a refusal."""
    with contextlib.suppress(InputError):
        assert set(ROW_COLUMNS) <= set(read_manifest(_file("manifest.parquet", data)).columns)


def table_csv(data: bytes) -> None:
    """Rows of a table with splits, and finite encoded columns, or a refusal."""
    (TABLE.root / "labels.csv").write_bytes(data)
    try:
        found = scan_rows(TABLE, TABLE_PARAMS.data, RULE)
        write_columns(SCRATCH / "columns", found.manifest, TABLE_PARAMS.data)
    except InputError as error:
        assert str(error)
        return
    assert set(found.manifest["split"]) >= {"train", "valid", "test"}
    assert found.manifest.groupby("key")["split"].nunique().max() == 1
    stored = Activations(SCRATCH / "columns")
    assert len(stored) == found.manifest["key"].nunique()
    assert bool(stored.rows(list(found.manifest["key"])).isfinite().all())


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (decoder, labels_csv, labels_parquet, table_csv, params, manifest)
}


def seeds(target: str) -> list[bytes]:
    """Whole files to begin with."""
    from tests import images

    if target == "decoder":
        small = images.RGB
        plain = [images.save(small, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]
        odd = [images.animated("GIF"), images.animated("PNG"), images.cmyk("JPEG"), images.cmyk("TIFF"), images.lying_gif()]
        odd += [images.sixteen_bit_rgb()[0], images.lying_jpeg(90, 500), images.save(small[..., 0], "JPEG", progressive=True)]
        return plain + odd
    if target == "table_csv":
        head = "label,shop,date,sold,open\n"
        lines = [f"{n % 7}.5,{n % 4},2013-01-{1 + n % 28:02},{n * n},{n % 2}" for n in range(40)]
        days = [f"{n},{n % 3},{1 + n % 28:02}.02.2013,," for n in range(90)]
        return [f"{head}{chr(10).join(part)}\n".encode() for part in (lines, days)]
    if target == "params":
        return [(ROOT / "params.yaml").read_bytes(), b"seed: 0\ndata: {builtin: digits}\n", b"seed: [1, &a {b: *a}]\n"]
    rows = pd.DataFrame({"path": ["a/1.png", "b/3.jpg"], "label": ["x", "y"], "split": ["train", None], "age": [1, 2]})
    if target == "labels_csv":
        return [rows.to_csv(index=False).encode(), b'path,label\n"a/1.png","x ""y"""\n', "path,label\na/ü 2.png,é\n".encode()]
    path = SCRATCH / "seed.parquet"
    if target == "labels_parquet":
        rows.to_parquet(path)
    else:
        write_manifest(path, pd.DataFrame({name: ["a", "b"] for name in COLUMNS}))
    return [path.read_bytes()]


def fuzz(target: str, limits: list[str]) -> int:
    """Run the fuzzer on one target in a process of its own; its exit code, 0 when nothing was found."""
    corpus = ROOT / ".headstart" / "fuzz" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (corpus / f"seed{number}").write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", target, str(corpus), *limits]
    options = [
        "-rss_limit_mb=6000",
        "-timeout=30",
        "-verbosity=0",
        "-print_final_stats=1",
        f"-artifact_prefix={corpus.parent}/",
    ]
    with tempfile.TemporaryDirectory(prefix="headstart-fuzz-") as scratch:  # Atheris ends without exit handlers
        environment = os.environ | {"HEADSTART_FUZZ": "1", "TMPDIR": scratch}
        return subprocess.run([*command, *options], cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", default=[*TARGETS], metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target, instead of a time")
    options = parser.parse_args()
    found = []
    for target in options.targets:
        print(f"fuzzing {target}", flush=True)  # noqa: T201
        limit = f"-runs={options.runs}" if options.runs > 0 else f"-max_total_time={options.seconds}"
        if fuzz(target, [limit]):
            found.append(target)
    print(f"findings in {', '.join(found)}: see .headstart/fuzz" if found else "nothing found")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    if os.environ.get("HEADSTART_FUZZ"):
        function = TARGETS[sys.argv[1]]
        atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: function(data))
        atheris.Fuzz()
    else:
        sys.exit(main())
