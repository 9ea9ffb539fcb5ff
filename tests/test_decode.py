"""One function turns a file into the pixels that every stage sees."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from headstart.images import decode as decode_module
from headstart.images.decode import DecodeError, decode, decode_image
from headstart.images.examine import examine
from headstart.images.limits import Limits
from headstart.images.reading import read_pixels
from headstart.images.whites import Whites
from tests import images
from tests.conftest import encode

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels(kind):
    assert np.array_equal(decode(encode(RGB, kind)), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats_give_the_shape(kind):
    pixels = decode(encode(RGB, kind))
    assert (pixels.shape, pixels.dtype) == ((12, 17, 3), np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    for kind in ("PNG", "TIFF"):
        found = decode_image(save(Image.fromarray(RGB), kind, exif=exif))
        assert np.array_equal(found.pixels, upright)
        assert found.orientation == orientation
        assert found.pixels.shape == (found.height, found.width, 3)


def test_transparency_is_composited_on_white():
    rgba = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    assert (decode(encode(rgba)) == 255).all()
    rgba[..., 3] = 255
    assert np.array_equal(decode(encode(rgba)), RGB)
    half = np.full((1, 1, 4), (0, 0, 0, 128), np.uint8)
    assert abs(int(decode(encode(half))[0, 0, 0]) - 127) <= 1


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    assert decode(save(image, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_sixteen_bits_are_scaled_not_saturated():
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    pixels = decode(save(Image.fromarray(values), "PNG"))
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))
    assert np.array_equal(decode(save(Image.fromarray(values), "TIFF")), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "RGB", "P"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(save(Image.fromarray(RGB).convert(mode), kind)).shape == (12, 17, 3)


@pytest.mark.parametrize("side", [1, 2, 5, 89])
def test_interlaced_files_are_whole_with_their_seven_passes(side):
    pixels = images.BIG[:side, : side + 1]
    assert np.array_equal(decode(images.interlaced(pixels)), pixels)


def test_superfluous_pixels_are_not_unpacked(monkeypatch):
    made = []
    real = decode_module.zlib.decompressobj

    class Watched:
        def __init__(self):
            self.inner = real()

        def decompress(self, *arguments):
            made.append(len(out := self.inner.decompress(*arguments)))
            return out

    data = images.png(8, 8, 8, 0, bytes(15 * 9) + bytes(20_000_000), interlaced=1)
    monkeypatch.setattr(decode_module.zlib, "decompressobj", Watched)
    assert not decode_module._png_rows_missing(data)
    assert sum(made) < 1_000


def test_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = save(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encode(RGB, "JPEG")[:200],
        encode(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8), "JPEG")[:-2000],
        encode(RGB, "PNG")[:-30],
        encode(RGB, "PNG")[:60] + b"\0\0\0\0" + encode(RGB, "PNG")[64:],
    ],
)
def test_what_is_no_whole_image_is_refused(data):
    with pytest.raises(DecodeError):
        decode(data)


def test_a_bomb_is_refused_from_its_header():
    header = bytearray(encode(np.zeros((1, 1, 3), np.uint8)))
    header[16:24] = (40_000).to_bytes(4) + (40_000).to_bytes(4)
    import zlib

    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4)
    with pytest.raises(DecodeError, match="pixels"):
        decode(bytes(header))
    with pytest.raises(DecodeError, match="12 pixels are more than 100"):
        decode(encode(RGB), max_pixels=100)


JPEGS = {
    f"{name}, quality {quality}, {how}": save(image, "JPEG", quality=quality, **options)
    for name, image in (
        ("rgb", Image.fromarray(RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8))),
        ("smooth", Image.linear_gradient("L").resize((123, 97)).convert("RGB")),
        ("gray", Image.fromarray(RNG.integers(0, 256, (40, 57), dtype=np.uint8))),
        ("cmyk", Image.fromarray(RNG.integers(0, 256, (33, 47, 3), dtype=np.uint8)).convert("CMYK")),
        ("tiny", Image.fromarray(RGB[:1, :1])),
    )
    for quality in (30, 90)
    for how, options in {
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "4:2:0": {"subsampling": 2},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 2},
    }.items()
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_fast_path_and_the_slow_one_give_identical_pixels(name, orientation):
    data = JPEGS[name]
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        body = exif.tobytes()
        data = data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body + data[2:]
    fast, slow = decode_image(data), decode_image(data, fast=False)
    assert fast.orientation == slow.orientation == orientation
    assert np.array_equal(fast.pixels, slow.pixels)
    reduced = decode_image(data, min_decode_side=10)
    assert (reduced.width, reduced.height) == (fast.width, fast.height) == fast.pixels.shape[1::-1]


def test_a_few_superfluous_bytes_are_got_over_and_told():
    data = save(Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)), "JPEG")
    tables = data.index(b"\xff\xc4")
    image = decode_image(data[:tables] + b"\0\0\0" + data[tables:])
    assert "extraneous bytes" in image.complaint
    assert np.array_equal(image.pixels, decode(data))
    with pytest.raises(DecodeError, match="2000 extraneous bytes"):
        decode(data[:tables] + bytes(2000) + data[tables:])


class FakeHeif:
    """pillow-heif, as far as it is called: what it opens is a PNG behind HEIC's first 24 bytes."""

    registered = 0

    def register_heif_opener(self) -> None:
        FakeHeif.registered += 1

        def opened(stream, name):
            image = Image.open(io.BytesIO(stream.read()[24:]))
            image.format = "HEIF"
            return image

        Image.register_open("HEIF", opened, lambda start: start[4:12] == b"ftypheic")


def test_heic_is_read_where_it_is_asked_for_and_the_package_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decode_module._open_heif.cache_clear()
    with pytest.raises(DecodeError, match="pip install pillow-heif"):
        decode_image(encode(RGB), formats=("PNG", "HEIF"))
    assert decode_image(encode(RGB), formats=("PNG",)).format == "PNG", "nobody else needs it"
    monkeypatch.setitem(sys.modules, "pillow_heif", FakeHeif())
    for _ in range(2):
        assert decode_image(encode(RGB), formats=("PNG", "HEIF")).format == "PNG"
    assert FakeHeif.registered == 1
    decode_module._open_heif.cache_clear()
    Image.OPEN.pop("HEIF", None)
    Image.ID.remove("HEIF")


def test_heic_that_the_scan_accepts_is_read_in_training_too(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", FakeHeif())
    decode_module._open_heif.cache_clear()
    start = images.heic()[:24]
    (tmp_path / "a.heic").write_bytes(start + encode(RGB))
    (tmp_path / "flat.heic").write_bytes(start + encode(np.full((12, 17, 3), 9, np.uint8)))
    limits = Limits(10_000, 4, ["PNG", "HEIF"])
    found, _ = examine(str(tmp_path / "a.heic"), limits)
    assert (found["format"], found["notes"]) == ("HEIF", [])
    assert [kind for kind, _ in examine(str(tmp_path / "flat.heic"), limits)[0]["notes"]] == ["constant"]
    assert np.array_equal(read_pixels(tmp_path, "a.heic", found["key"], 10_000, Whites()), RGB)
    decode_module._open_heif.cache_clear()
    Image.OPEN.pop("HEIF", None)
    Image.ID.remove("HEIF")
