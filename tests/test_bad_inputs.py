"""Every kind of the bad-inputs table: the file is built, and outcome, message and counts are checked.

R refused, Q quarantined, W accepted with a warning, A accepted and normalised, I ignored.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from headstart.core.errors import InputError
from headstart.images.decode import decode
from headstart.images.examine import Unreadable, examine
from headstart.images.limits import Limits
from headstart.images.reading import read_pixels
from headstart.images.whites import Whites
from headstart.ingest.scan import Scan
from headstart.ingest.summary import summarise
from headstart.ingest.tree import preflight
from headstart.manifest import read_manifest, write_csv, write_manifest
from headstart.targets.kinds import target_of
from tests import images
from tests.conftest import encode, picture, scan_folder, write_shapes
from tests.images import BIG, RGB, save

LARGE = {"max_pixels": 50_000_000}
JPEG = save(BIG, "JPEG")


def counts(result: Scan, folder: Path) -> tuple[int, int, int]:
    """(images, quarantined, ignored), which add up to the files that are there."""
    report = summarise(result)
    files = sum(len(names) for _, _, names in os.walk(folder))
    assert report["files"] == files == report["images"] + report["quarantined"] + report["ignored"]
    return report["images"], report["quarantined"], report["ignored"]


QUARANTINED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "JPEG cut in half": ("x.jpg", lambda: JPEG[: len(JPEG) // 2], "Premature end|premature end"),
    "JPEG cut by 20 bytes": ("x.jpg", lambda: JPEG[:-20], "Premature end"),
    "JPEG header only": ("x.jpg", lambda: JPEG[:160], "damaged|not an image"),
    "zero bytes": ("x.jpg", lambda: b"", "not an image"),
    "text": ("x.jpg", lambda: b"just some text\n" * 20, "not an image"),
    "HTML": ("x.jpg", lambda: b"<!doctype html><html><body>404</body></html>", "not an image"),
    "HEIC": ("x.jpg", images.heic, "it is HEIC; convert it first, for example: heif-convert in.heic out.jpg"),
    "HEIC by name": ("x.HEIC", images.heic, "it is HEIC; convert it first, for example: heif-convert in.heic out.jpg"),
    "HEIC by name only": ("x.heif", lambda: b"junk", "not an image.*named as HEIC: convert it first"),
    "JPEG XL": ("x.jxl", lambda: b"\xff\x0a" + bytes(99), "it is JPEG XL; convert it first, for example: djxl"),
    "JPEG 2000": ("x.jpg", lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "it is JPEG 2000; convert it first"),
    "Photoshop": ("x.psd", lambda: b"8BPS" + bytes(99), "it is Photoshop; convert it first, for example: magick"),
    "raw file with a preview": ("x.NEF", lambda: save(BIG, "TIFF"), "a camera's raw file: the readable part may be"),
    "raw file by its content": ("x.jpg", lambda: b"FUJIFILMCCD-RAW " + bytes(99), "it is a camera's raw file; convert it"),
    "Netpbm": ("x.ppm", lambda: save(BIG, "PPM"), "not an image of an accepted format.*named as Netpbm: convert it first"),
    "cut PNG": ("x.png", lambda: save(BIG, "PNG")[:-2000], "damaged"),
    "PNG cut by 12 bytes": ("x.png", lambda: save(BIG, "PNG")[:-12], "no IEND"),
    "PNG cut by 1 byte": ("x.png", lambda: save(BIG, "PNG")[:-1], "no IEND"),
    "interlaced PNG without its last pass": ("x.png", lambda: images.interlaced(BIG[:89], passes=6), "fewer rows"),
    "cut WebP": ("x.webp", lambda: save(BIG, "WEBP")[:-400], "damaged|not an image"),
    "cut GIF": ("x.gif", lambda: save(BIG, "GIF")[:-1500], "truncated"),
    "bad IDAT": ("x.png", images.bad_idat, "damaged"),
    "400-megapixel bomb": ("x.png", lambda: images.bomb(20_000, 20_000), "more than 50,000,000 pixels|pixels are more"),
    "144 megapixels": ("x.png", lambda: images.bomb(12_000, 12_000), "pixels are more than 50,000,000|more than 50,000,000"),
    "dimensions that lie, no pixels": ("x.png", lambda: images.bomb(3_000, 3_000), "damaged"),
    "dimensions that lie, PNG higher": ("x.png", lambda: images.lying_png(90, 500), "fewer rows"),
    "dimensions that lie, PNG wider": ("x.png", lambda: images.lying_png(500, 90), "fewer rows|damaged"),
    "dimensions that lie, JPEG higher": ("x.jpg", lambda: images.lying_jpeg(90, 500), "premature end"),
    "dimensions that lie, JPEG wider": ("x.jpg", lambda: images.lying_jpeg(500, 90), "premature end"),
    "dimensions that lie, JPEG lower": ("x.jpg", lambda: images.lying_jpeg(90, 40), "extraneous bytes"),
    "dimensions that lie, JPEG huge": ("x.jpg", lambda: images.lying_jpeg(60_000, 60_000), "more than"),
    "dimensions that lie, TIFF higher": ("x.tif", lambda: images.lying_tiff(500), "500 rows by its header"),
    "dimensions that lie, GIF": ("x.gif", images.lying_gif, "pixels|damaged"),
    "JPEG cut and closed": ("x.jpg", lambda: JPEG[: len(JPEG) // 2] + b"\xff\xd9", "premature end"),
    "100 MB zTXt": ("x.png", images.text_bomb, "damaged.*too large"),
    "SVG": ("x.jpg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not an image"),
    "EPS": ("x.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "NaN TIFF": ("x.tif", lambda: save(np.full((12, 12), np.nan, np.float32), "TIFF"), "floating-point"),
    "side below min_side": ("x.png", lambda: save(RGB[:3], "PNG"), "a side below 4"),
}


@pytest.mark.parametrize("kind", QUARANTINED)
def test_quarantined(shapes, kind):
    name, build, told = QUARANTINED[kind]
    (shapes / "a" / name).write_bytes(build())
    result = scan_folder(shapes, **LARGE)
    assert counts(result, shapes) == (60, 1, 0)
    assert list(result.quarantine["path"]) == [f"a/{name}"]
    assert pd.Series(result.quarantine["reason"]).str.contains(told, regex=True).all(), result.quarantine["reason"][0]


def test_a_text_bomb_is_refused_without_being_unpacked(shapes, monkeypatch):
    """Pillow stops unpacking text at 1 MB: far less than 100 MB is ever made."""
    data = images.text_bomb()
    assert len(data) < 200_000
    made = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self.inner = real()

        def decompress(self, *arguments: object) -> bytes:
            out = self.inner.decompress(*arguments)
            made.append(len(out))
            return out

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(ValueError, match="too large"):
        decode(data)
    assert sum(made) < 4_000_000


WARNED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "trailing payload, JPEG": ("x.jpg", lambda: JPEG + b"PK\3\4 hidden", "trailing bytes"),
    "trailing payload, PNG": ("x.png", lambda: save(BIG, "PNG") + b"more", "trailing bytes"),
    "trailing payload, GIF": ("x.gif", lambda: save(BIG, "GIF") + b"more", "trailing bytes"),
    "trailing payload, WebP": ("x.webp", lambda: save(BIG, "WEBP") + b"more", "trailing bytes"),
    "trailing payload, BMP": ("x.bmp", lambda: save(BIG, "BMP") + b"more", "trailing bytes"),
    "trailing payload, PNG with an end of its own": ("x.png", lambda: 2 * save(BIG, "PNG"), "trailing bytes"),
    "PNG named .jpg": ("x.jpg", lambda: save(BIG, "PNG"), "extension"),
    "transparent RGBA": ("x.png", lambda: save(np.dstack([BIG, BIG[..., 0]]), "PNG"), "transparent"),
    "constant": ("x.png", lambda: save(np.full((16, 16, 3), 77, np.uint8), "PNG"), "constant"),
    "animated GIF": ("x.gif", lambda: images.animated("GIF"), "frames"),
    "animated WebP": ("x.webp", lambda: images.animated("WEBP"), "frames"),
    "APNG": ("x.png", lambda: images.animated("PNG"), "frames"),
    "multi-page TIFF": ("x.tif", lambda: images.animated("TIFF"), "frames"),
}


@pytest.mark.parametrize("kind", WARNED)
def test_accepted_with_a_warning(shapes, kind):
    name, build, told = WARNED[kind]
    data = build()
    (shapes / "a" / name).write_bytes(data)
    result = scan_folder(shapes)
    assert counts(result, shapes) == (61, 0, 0)
    assert result.notes[["path", "kind"]].to_numpy().tolist() == [[f"a/{name}", told]]
    assert summarise(result)["warned"] == {told: 1}
    if told == "frames":
        red = decode(data)[6, 6]
        assert red[0] > 200 > 60 > red[2], "the first frame"


def clean(kind: str) -> bytes:
    return save(BIG, kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_plain_file_is_accepted_without_any_note(shapes, kind):
    name = {"JPEG": "x.jpg", "TIFF": "x.tiff"}.get(kind, f"x.{kind.lower()}")
    (shapes / "a" / name).write_bytes(clean(kind))
    result = scan_folder(shapes)
    assert counts(result, shapes) == (61, 0, 0)
    assert result.notes.empty


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(RGB, "PNG", exif=exif)


def palette_with_alpha() -> bytes:
    image = Image.new("P", (16, 16))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1] * 128)
    return save(image, "PNG", transparency=bytes([0, 255]))


ACCEPTED: dict[str, tuple[str, Callable[[], bytes], Callable[[np.ndarray], bool], str]] = {
    "bad ICC": ("x.jpg", lambda: save(BIG, "JPEG", icc_profile=b"not a profile"), lambda p: p.shape == (90, 90, 3), ""),
    "CMYK JPEG": ("x.jpg", lambda: images.cmyk("JPEG"), lambda p: p[8, 2, 0] < 30 < 225 < p[8, 2, 1], "CMYK to RGB"),
    "CMYK TIFF": ("x.tif", lambda: images.cmyk("TIFF"), lambda p: p[8, 14].max() < 30, "CMYK to RGB"),
    "gray": ("x.png", lambda: save(BIG[..., 0], "PNG"), lambda p: (p == BIG[..., :1]).all(), "gray to RGB"),
    "1-bit": (
        "x.png", lambda: save(Image.fromarray(BIG).convert("1"), "PNG"), lambda p: set(p.flat) == {0, 255}, "1-bit to RGB",
    ),
    "gray + alpha": (
        "x.png", lambda: save(np.dstack([BIG[..., 0], np.full((90, 90), 255, np.uint8)]), "PNG"),
        lambda p: (p == BIG[..., :1]).all(), "gray with alpha to RGB",
    ),
    "BMP": ("x.bmp", lambda: save(BIG, "BMP"), lambda p: (p == BIG).all(), ""),
    "AVIF": ("x.avif", lambda: save(BIG, "AVIF"), lambda p: p.shape == (90, 90, 3), ""),
    "16-bit gray": (
        "x.png", lambda: save(np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16), "PNG"),
        lambda p: (p[..., 0].ravel() == np.arange(256)).all(), "16 bits to 8",
    ),
    "16-bit RGB": (
        "x.png", lambda: images.sixteen_bit_rgb()[0],
        lambda p: np.abs(p - images.sixteen_bit_rgb()[1] / 257).max() <= 1, "",
    ),
    "palette": (
        "x.png", lambda: save(Image.fromarray(BIG).quantize(64), "PNG"), lambda p: p.shape == (90, 90, 3), "palette to RGB",
    ),
    "palette + alpha": (
        "x.png", palette_with_alpha, lambda p: p[0, :2].tolist() == [[255, 255, 255], [0, 255, 0]], "palette to RGB",
    ),
    "EXIF orientation": ("x.png", lambda: turned(6), lambda p: (p == np.rot90(RGB, -1)).all(), "EXIF orientation applied"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_accepted_and_normalised(shapes, kind):
    name, build, right, told = ACCEPTED[kind]
    (shapes / "a" / name).write_bytes(build())
    result = scan_folder(shapes)
    assert counts(result, shapes) == (61, 0, 0)
    row = result.manifest.set_index("path").loc[f"a/{name}"]
    pixels = read_pixels(shapes, f"a/{name}", row["key"], 10_000, Whites())
    assert right(pixels.astype(np.int64))
    assert (row["height"], row["width"]) == pixels.shape[:2]
    assert summarise(result)["normalised"] == ({told: 1} if told else {})


IGNORED = {
    "Thumbs.db": "a/Thumbs.db",
    ".DS_Store": "b/.DS_Store",
    "._x.jpg": "a/._x.jpg",
    ".gitkeep": "a/.gitkeep",
    **{name: f"{name}/x.png" for name in ("@eaDir", "System Volume Information", "lost+found", "#recycle", "$Recycle.Bin")},
    "@eaDir in a class": "a/@eaDir/x.png",
    "a text beside an image": "a/000.txt",
    "a sound beside an image": "b/000.ogg",
    "a vector image beside it": "b/000.svg",
    "a table at the root": "readings.csv",
    "an image by another name": "a/picture.dat",
    ".ipynb_checkpoints": ".ipynb_checkpoints/a-checkpoint.png",
    ".ipynb_checkpoints in a class": "a/.ipynb_checkpoints/x.png",
    "directory named x.jpg": "a/x.jpg/inner.png",
    "directory named x.jpg at the root": "x.jpg/inner.png",
}


@pytest.mark.parametrize("kind", IGNORED)
def test_ignored_and_counted(shapes, kind):
    path = shapes / IGNORED[kind]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(picture(0, 77)))
    result = scan_folder(shapes, max_quarantined=0.0)
    assert counts(result, shapes) == (60, 0, 1)
    assert set(result.manifest["label"]) == {"a", "b", "c"}
    assert result.notes[["path", "kind"]].to_numpy().tolist() == [[IGNORED[kind], "ignored"]]


def test_an_empty_directory_named_like_an_image_is_no_class(shapes):
    (shapes / "y.jpg").mkdir()
    (shapes / "a" / "x.jpg").mkdir()
    assert counts(scan_folder(shapes), shapes) == (60, 0, 0)


def make_socket(folder: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder / "a")
    try:
        server.bind("sock")
    finally:
        os.chdir(here)
        server.close()


def make_device(folder: Path) -> None:
    (folder / "a" / "null").symlink_to("/dev/null")


def outside(folder: Path) -> Path:
    path = folder.parent / "outside.png"
    path.write_bytes(encode(picture(0, 900)))
    return path


REFUSED_UNOPENED: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (lambda f: os.mkfifo(f / "a" / "pipe"), "a/pipe: not a regular file"),
    "socket": (make_socket, "a/sock: not a regular file"),
    "device": (make_device, "a/null: a link to something other than a regular file"),
    "dangling link": (lambda f: (f / "a" / "gone.png").symlink_to("/no/such/file"), "a/gone.png: a link that leads nowhere"),
    "symlink loop": (lambda f: (f / "loop").symlink_to(f / "loop"), "loop: a link that leads nowhere (Too many levels"),
    "loop through folders": (lambda f: (f / "a" / "up").symlink_to(f), "a/up: a linked sub-folder"),
    "linked sub-folder": (lambda f: (f / "linked").symlink_to(f / "a"), "linked: a linked sub-folder"),
    ".dvcignore inside": (lambda f: (f / "a" / ".dvcignore").write_text("*"), "a/.dvcignore: DVC would"),
    "non-UTF-8 name": (
        lambda f: Path(os.fsdecode(os.fsencode(f / "a") + b"/\xff.png")).write_bytes(b""),
        "a/\\xff.png: a name that is not UTF-8",
    ),
    "non-UTF-8 folder": (lambda f: Path(os.fsdecode(os.fsencode(f) + b"/\xfe")).mkdir(), "\\xfe: a name that is not UTF-8"),
    "file link leading out": (
        lambda f: (f / "a" / "out.png").symlink_to(outside(f)), "a/out.png: a link to a file outside the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED_UNOPENED)
def test_refused_by_lstat_before_anything_is_opened(shapes, kind, monkeypatch):
    spoil, told = REFUSED_UNOPENED[kind]
    spoil(shapes)
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    opened.clear()
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert told in str(error.value)
    assert not [name for name in opened if str(shapes) in name]


def test_all_offenders_are_listed_up_to_ten(shapes):
    for number in range(12):
        os.mkfifo(shapes / "a" / f"pipe{number:02}")
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert "a/pipe" in str(error.value) and str(error.value).count("not a regular file") == 10
    assert "and 2 more" in str(error.value)


def test_links_within_the_folder_and_external_ones_if_wanted(shapes):
    (shapes / "a" / "again.png").symlink_to(shapes / "a" / "000.png")
    (shapes / "a" / "out.png").symlink_to(outside(shapes))
    result = scan_folder(shapes, follow_external_links=True)
    assert counts(result, shapes) == (62, 0, 0)
    assert summarise(result)["exact_copies"] == 1


def test_links_into_the_projects_dvc_cache_are_regular_files(shapes):
    cache = shapes.parent / "project" / ".dvc" / "cache"
    cache.mkdir(parents=True)
    shutil.move(shapes / "a" / "000.png", cache / "0a1b")
    (shapes / "a" / "000.png").symlink_to(cache / "0a1b")
    assert len(preflight(shapes, trusted=lambda: [cache]).files) == 60
    with pytest.raises(InputError, match="outside the folder"):
        preflight(shapes)


def as_nobody(function: Callable[[], str]) -> str:
    """What `function` returns in a process that has given up root's rights."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(write, function().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said


def test_permission_denied():
    """A file is quarantined, a folder refused; tried as a user who may not read them."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    locked = folder / "a" / "locked.png"

    def examine_file() -> str:
        try:
            return str(examine(str(locked), Limits(10_000, 4, ["PNG"])))
        except Unreadable as error:
            return str(error)

    def look_at_folder() -> str:
        try:
            return str(preflight(folder))
        except InputError as error:
            return str(error)

    try:
        write_shapes(folder, each=2)
        locked.write_bytes(encode(picture(0, 1)))
        for path, mode in ((folder, 0o755), (locked, 0), (folder / "b", 0)):
            path.chmod(mode)
        assert as_nobody(examine_file) == "cannot be read: Permission denied"
        assert "b: a folder that cannot be read (Permission denied)" in as_nobody(look_at_folder)
    finally:
        (folder / "b").chmod(0o755)
        shutil.rmtree(folder)


def nest(folder: Path) -> None:
    (folder / "a" / "deep" / "er").mkdir(parents=True)
    (folder / "a" / "deep" / "er" / "x.png").write_bytes(encode(picture(0, 77)))


def one_class(folder: Path) -> None:
    for label in "bc":
        shutil.rmtree(folder / label)


def twin(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for one in (name, name.upper() if name.isascii() else unicodedata.normalize("NFD", name)):
            (folder / one).mkdir(exist_ok=True)
            (folder / one / "x.png").write_bytes(encode(picture(0, 77 + len(one))))

    return spoil


LAYOUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty class folder": (lambda f: (f / "d").mkdir(), "class folder d in"),
    "class folder of system files": (lambda f: ((f / "d").mkdir(), (f / "d" / "Thumbs.db").touch()), "class folder d in"),
    "nested folders": (nest, "a/deep/er/x.png"),
    "one class only": (one_class, "only one class ('a')"),
    "class folders b and B": (twin("b"), "'B' and 'b' differ only in case"),
    "class folders in NFC and NFD": (twin("é"), "differ only in case, inner white space or Unicode's"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_that_cannot_be_learnt_from_are_refused(shapes, kind):
    spoil, told = LAYOUTS[kind]
    spoil(shapes)
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert told in str(error.value)


def test_nested_folders_if_declared(shapes):
    nest(shapes)
    result = scan_folder(shapes, nested_folders=True)
    assert counts(result, shapes) == (61, 0, 0)
    assert result.manifest.set_index("path")["label"]["a/deep/er/x.png"] == "a"


def test_a_file_at_the_root_is_quarantined(shapes):
    (shapes / "stray.png").write_bytes(encode(picture(0, 77)))
    result = scan_folder(shapes)
    assert counts(result, shapes) == (60, 1, 0)
    assert result.quarantine.to_numpy().tolist() == [["stray.png", "a file outside the class folders"]]
    assert "stray.png" not in set(result.manifest["label"])


def test_a_licence_at_the_root_is_quarantined_and_does_not_count_against_the_limit(shapes):
    (shapes / "LICENSE").write_text("as you like")
    result = scan_folder(shapes, max_quarantined=0.0)
    assert counts(result, shapes) == (60, 1, 0)


def test_more_than_the_limit_is_refused_and_the_limit_itself_is_not(shapes):
    for number in range(6):
        (shapes / "a" / f"{number:03}.png").write_bytes(b"junk")
    assert counts(scan_folder(shapes, max_quarantined=0.1), shapes) == (54, 6, 0)
    with pytest.raises(InputError, match=r"6 of 60 files.*\n.*a/000.png") as error:
        scan_folder(shapes, max_quarantined=0.09)
    assert "at most 9.0% (data.max_quarantined)" in str(error.value)


def test_a_class_emptied_by_quarantine_is_refused(shapes):
    (shapes / "d").mkdir()
    (shapes / "d" / "only.png").write_bytes(b"junk")
    with pytest.raises(InputError, match="no usable file is left of class d"):
        scan_folder(shapes)


def test_odd_names_round_trip(shapes, tmp_path):
    names = ["new\nline.png", "re\rturn.png", 'quo"te.png', "x" * 251 + ".png", "=cmd.png", "ünïcode.png", "a,b.png"]
    for i, name in enumerate(names):
        (shapes / "a" / name).write_bytes(encode(picture(0, 200 + i)))
    for name in ("=bad\n.png", "=bad\r.png"):
        (shapes / "a" / name).write_bytes(b"junk")
    result = scan_folder(shapes)
    assert counts(result, shapes) == (67, 2, 0)
    write_manifest(tmp_path / "m.parquet", result.manifest)
    assert {f"a/{name}" for name in names} <= set(read_manifest(tmp_path / "m.parquet")["path"])
    write_csv(tmp_path / "q.csv", result.quarantine)
    assert list(pd.read_csv(tmp_path / "q.csv")["path"]) == ["a/=bad\n.png", "a/=bad\r.png"]


def test_no_name_forges_a_line_of_a_message(shapes):
    (shapes / "a" / "x\nerror: all is lost\x1b[2J.png").symlink_to("/no/such/file")
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert r"a/x\nerror: all is lost\x1b[2J.png: a link that leads nowhere" in str(error.value)


def test_names_that_a_normal_form_alone_tells_apart_are_warned_of(shapes):
    for number, form in enumerate(("NFC", "NFD")):
        (shapes / "a" / f"{unicodedata.normalize(form, 'é')}.png").write_bytes(encode(picture(0, 300 + number)))
    result = scan_folder(shapes)
    assert counts(result, shapes) == (62, 0, 0)
    assert list(result.notes["kind"]) == ["name twin"]


def test_labels_that_case_alone_tells_apart_are_warned_of(shapes):
    rows = [f"{path.relative_to(shapes)},{'Xx'[number % 2]}" for number, path in enumerate(sorted(shapes.rglob("*.png")))]
    text("path,label\n" + "\n".join(rows))(shapes)
    result = scan_folder(shapes)
    assert result.notes.loc[result.notes["kind"] == "label twin", "text"].str.contains("'x' and 'X'").tolist() == [True]


def test_numeric_class_names_have_one_order(tmp_path):
    write_shapes(tmp_path / "s")
    for old, new in zip("abc", ("2", "10", "1"), strict=True):
        (tmp_path / "s" / old).rename(tmp_path / "s" / new)
    result = scan_folder(tmp_path / "s")
    target = target_of(result.format.describe(result.manifest))
    order = {name: int(target.encode([name])) for name in set(result.manifest["label"])}
    assert order == {"1": 0, "10": 1, "2": 2}


def test_a_class_with_one_image_is_trained_on_and_told(shapes):
    for number in range(8):  # so that some would have gone to valid or test by their hash
        (shapes / f"single{number}").mkdir()
        (shapes / f"single{number}" / "x.png").write_bytes(encode(picture(0, 400 + number)))
    result = scan_folder(shapes)
    single = result.manifest[result.manifest["label"].str.startswith("single")]
    assert (single["split"] == "train").all()
    assert 0 < len(result.rescued) < 8
    assert summarise(result)["classes_kept_in_train"] == result.rescued


def test_ten_thousand_classes(tmp_path):
    data = [encode(picture(0, number, side=18)) for number in range(10_150)]
    for number in range(10_000):
        (tmp_path / "s" / f"{number:05}").mkdir(parents=True)
        (tmp_path / "s" / f"{number:05}" / "x.png").write_bytes(data[number])
    for number in range(10_000, 10_150):
        (tmp_path / "s" / "00007" / f"{number}.png").write_bytes(data[number])
    result = scan_folder(tmp_path / "s", near_duplicates="keep")
    target = target_of(result.format.describe(result.manifest))
    assert target.encode(result.manifest["label"]).unique().tolist() == list(range(10_000))
    assert set(result.manifest["split"]) == {"train", "valid", "test"}
    assert len(result.rescued) > 3_000
    assert len(summarise(result)["classes_kept_in_train"]) == 20


def test_the_same_bytes_under_two_labels(shapes):
    (shapes / "b" / "same.png").write_bytes((shapes / "a" / "000.png").read_bytes())
    with pytest.raises(InputError, match="two labels") as error:
        scan_folder(shapes)
    assert "'a/000.png' is 'a'" in str(error.value) and "'b/same.png' is 'b'" in str(error.value)
    result = scan_folder(shapes, on_label_conflict="quarantine")
    assert counts(result, shapes) == (59, 2, 0)
    assert set(result.quarantine["reason"]) == {"the same bytes under the labels a, b"}


def test_the_same_bytes_twice(shapes):
    for number in range(20):
        (shapes / "a" / f"copy{number}.png").write_bytes((shapes / "a" / f"{number:03}.png").read_bytes())
    result = scan_folder(shapes)
    assert counts(result, shapes) == (80, 0, 0)
    assert (result.manifest.groupby("key")["split"].nunique() == 1).all()
    assert summarise(result)["exact_copies"] == 20


def test_a_file_changed_since_the_manifest_is_refused_by_whoever_reads_it(shapes):
    row = scan_folder(shapes).manifest.iloc[0]
    (shapes / row["path"]).write_bytes(encode(picture(1, 999)))
    with pytest.raises(InputError, match=row["path"]) as error:
        read_pixels(shapes, row["path"], row["key"], 10_000, Whites())
    assert "relink" in str(error.value)
    (shapes / row["path"]).unlink()
    with pytest.raises(InputError, match="although the manifest lists it"):
        read_pixels(shapes, row["path"], row["key"], 10_000, Whites())


def test_a_file_removed_during_the_scan_is_refused(shapes, monkeypatch):
    from headstart.ingest import scan as module

    real = module.examine_all

    def remove_first(paths, *arguments, **options):
        Path(paths[5]).unlink()
        return real(paths, *arguments, **options)

    monkeypatch.setattr(module, "examine_all", remove_first)
    with pytest.raises(InputError, match="has disappeared since"):
        scan_folder(shapes)


def parquet(**columns: list[object]) -> Callable[[Path], None]:
    return lambda folder: pd.DataFrame(columns).to_parquet(folder / "labels.parquet")


def text(content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "labels.csv").write_bytes(data)


FAULTY_LABELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing column": (text("path,class\na/000.png,x\n"), "labels.csv row 1: no column label; columns found: path, class"),
    "wrong delimiter": (
        text("path|label\na/000.png|x\n"),
        "labels.csv row 1: no column path, label; columns found: path|label",
    ),
    "UTF-16": (text("path,label\na/000.png,x\n".encode("utf-16")), "labels.csv row 1: UTF-16 text"),
    "UTF-16 without a mark": (text("path,label\na/000.png,x\n".encode("utf-16-le")), "labels.csv row 1: UTF-16 text"),
    "unknown path": (text("path,label\na/none.png,x\n"), "row 2, column path: no file 'a/none.png'"),
    "a folder": (text("path,label\na,x\n"), "row 2, column path: no file 'a'"),
    "path outside": (text("path,label\na/000.png,x\n../x.png,x\n"), "row 3, column path: '../x.png' leads out"),
    "absolute path": (text("path,label\n/etc/passwd,x\n"), "row 2, column path: '/etc/passwd' leads out"),
    "duplicate row": (text("path,label\na/000.png,x\na/./000.png,y\n"), "row 3, column path: 'a/000.png' is already in row 2"),
    "empty label": (text("path,label\na/000.png,\n"), "row 2, column label: empty"),
    "unknown split": (text("path,label,split\na/000.png,x,dev\n"), "row 2, column split: 'dev'"),
    "too many cells": (text("path,label\na/000.png,x,y\n"), "row 2, column label: 3 cells"),
    "too few cells": (text("path,label,split\na/000.png,x\n"), "row 2, column split: 2 cells"),
    "reserved column": (text("path,label,key\na/000.png,x,1\n"), "row 1, column key: reserved"),
    "column twice": (text("path,label,label\na/000.png,x,1\n"), "row 1, column label: this name occurs twice"),
    "column without a name": (text("path,label,\na/000.png,x,1\n"), "row 1, column 3: without a name"),
    "not UTF-8": (text(b"path,label\na/000.png,caf\xe9\n"), "row 2: not UTF-8"),
    "blank rows count": (text("path,label\n\n\na/000.png,\n"), "row 4, column label: empty"),
    "open quote": (text('path,label\n"a/000.png,x\n'), "row 2: unexpected end of data"),
    "empty file": (text(""), "row 1: no column path, label; columns found: none"),
    "Parquet, missing column": (parquet(path=["a/000.png"]), "labels.parquet row 1: no column label"),
    "Parquet, unknown path": (parquet(path=["a/none.png"], label=["x"]), "labels.parquet row 1, column path: no file"),
    "Parquet, number for a path": (parquet(path=[1.5], label=["x"]), "row 1, column path: 1.5 of type float"),
    "Parquet, nested": (parquet(path=["a/000.png"], label=["x"], box=[[1, 2]]), "column box: nested values"),
    "Parquet, not one": (lambda f: (f / "labels.parquet").write_bytes(b"PAR1 no"), "labels.parquet: not a Parquet file"),
    "both": (lambda f: (text("path,label\n")(f), parquet(path=[], label=[])(f)), "both labels.csv and labels.parquet"),
}


@pytest.mark.parametrize("kind", FAULTY_LABELS)
def test_a_faulty_labels_file_is_refused_with_row_and_column(shapes, kind):
    spoil, told = FAULTY_LABELS[kind]
    spoil(shapes)
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert told in str(error.value)


def test_a_label_whose_name_is_there_in_another_normal_form_is_told(shapes):
    (shapes / "a" / unicodedata.normalize("NFD", "é.png")).write_bytes(encode(picture(0, 1)))
    text(f"path,label\na/{unicodedata.normalize('NFC', 'é.png')},x\n")(shapes)
    with pytest.raises(InputError, match="another Unicode normal form"):
        scan_folder(shapes)


def test_names_with_dots_and_separators_that_are_none_in_a_csv(shapes):
    for name in ("..dots.png", "sep\u2028arate.png"):
        (shapes / name).write_bytes(encode(picture(0, 600 + len(name))))
    rows = [f"{path.relative_to(shapes)},{number % 2}" for number, path in enumerate(sorted(shapes.rglob("*.png")))]
    text("\npath,label\n" + "\n".join(rows))(shapes)
    assert {"..dots.png", "sep\u2028arate.png"} <= set(scan_folder(shapes).manifest["path"])


def test_paths_that_the_system_cannot_take(shapes):
    folder = shapes / "a"
    here = os.open(folder, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("x" * 200, dir_fd=here)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(InputError, match="File name too long"):
        scan_folder(shapes)


def test_a_source_whose_own_path_is_not_utf8(tmp_path):
    with pytest.raises(InputError, match=r"\\xff: a path that is not UTF-8"):
        preflight(write_shapes(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))))


def test_a_huge_file_is_not_read(shapes):
    with (shapes / "a" / "huge.jpg").open("wb") as stream:
        stream.truncate(1 << 40)
    result = scan_folder(shapes)
    assert counts(result, shapes) == (60, 1, 0)
    assert "1,099,511,627,776 bytes" in result.quarantine["reason"][0]


def test_the_first_bytes_of_an_image_in_memory_are_what_the_file_has(shapes):
    """Scanning keeps the size, hash and kind of the file as it is."""
    data = save(BIG, "JPEG", quality=40)
    (shapes / "a" / "x.JPG").write_bytes(data)
    row = scan_folder(shapes).manifest.set_index("path").loc["a/x.JPG"]
    assert (row["bytes"], row["format"], row["mode"], row["orientation"]) == (len(data), "JPEG", "RGB", 1)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(data))), read_pixels(shapes, "a/x.JPG", row["key"], 10_000, Whites())
    )
