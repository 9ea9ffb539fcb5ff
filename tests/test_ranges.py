"""Gray images of more than 8 bits are scaled by one range for a source, wherever they are read; elongated ones stay small."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from headstart.activations.store import Activations
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.images.decode import DecodeError, decode_image
from headstart.images.loader import ImageSource, ResizedImageCache
from headstart.images.preprocessing import Preprocessing
from headstart.images.transforms import Augmentation, base_view, resized
from headstart.images.whites import Whites, floating_white, integer_white, whites_of
from headstart.manifest import read_manifest, without_copies, write_manifest
from headstart.models.trained import load_card
from headstart.prediction.batch import predict_folder
from headstart.prediction.predictor import Predictor
from headstart.prediction.supervisor import ScoringJob
from tests.conftest import encode, scan_folder, write_shapes
from tests.images import png
from tests.projects import how
from tests.test_models import make_model

PRE = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
NONE = Augmentation("none", False, 0.0, 1.0, 0.0)


def deep(values: np.ndarray, kind: str = "TIFF") -> bytes:
    """A gray array of uint16, int16, int32 or float32 as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def gradient(peak: float, kind: type = np.uint16, number: int = 0) -> np.ndarray:
    """[24, 32], from 0 to `peak`, one for each number."""
    values = np.linspace(0, peak, 24 * 32).reshape(24, 32)
    return np.roll(values, 40 * number, axis=None).astype(kind)


@pytest.mark.parametrize(
    ("peak", "white"), [(200, 255), (255, 255), (256, 1023), (1023, 1023), (3000, 4095), (4095, 4095), (4096, 16383),
                        (20_000, 65535), (65535, 65535), (70_000, 70_000)],
)  # fmt: skip
def test_whole_numbers_end_where_their_bits_do(peak, white):
    assert integer_white(peak) == white


@pytest.mark.parametrize(
    ("peak", "white"), [(0.2, 1), (1.0, 1), (1.0001, 1.0001), (2.0, 2.0), (200.0, 255), (255.0, 255), (1000.0, 1000)]
)
def test_floating_numbers_are_shares_levels_or_what_was_found(peak, white):
    assert floating_white(peak) == white


def source(tmp_path, peaks: dict[str, float], kind: type = np.uint16, each: int = 12):
    folder = tmp_path / "deep"
    for label, peak in peaks.items():
        (folder / label).mkdir(parents=True)
        for number in range(each):
            (folder / label / f"{number}.tif").write_bytes(deep(gradient(peak, kind, number + 1)))
    return folder


def test_12_bits_in_16_are_seen_and_noted(tmp_path):
    """They were near black: levels 2 to 12 of 255, without a word."""
    found = scan_folder(source(tmp_path, {"a": 4095, "b": 3000}), near_duplicates="keep")
    whites = whites_of(found.manifest)
    assert whites == Whites(integer=4095.0, floating=1.0)
    notes = found.notes[found.notes["kind"] == "range"]
    assert len(notes) == len(found.manifest) == 24
    assert "values up to 3,000: 4,095 is white, as in all images of this source" in set(notes["text"])
    pixels = decode_image(deep(gradient(3000)), whites=whites).pixels
    assert pixels.max() == round(3000 / 4095 * 255), "one range for all: a darker image stays darker"
    assert decode_image(deep(gradient(4095)), whites=whites).pixels.max() == 255


def test_16_bits_are_as_ever_and_a_mixed_source_says_which_are_dark(tmp_path):
    found = scan_folder(source(tmp_path, {"a": 65535, "b": 4095}), near_duplicates="keep")
    assert whites_of(found.manifest) == Whites()
    assert set(found.notes["kind"]) == {"dark"}
    assert set(found.notes["path"].str[0]) == {"b"}
    values = gradient(65535)
    wanted = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(decode_image(deep(values), whites=Whites()).pixels[..., 0], wanted)


def test_floating_numbers_just_above_1(tmp_path):
    found = scan_folder(source(tmp_path, {"a": 1.02, "b": 0.9}, np.float32), near_duplicates="keep")
    whites = whites_of(found.manifest)
    assert whites.floating == pytest.approx(1.02)
    pixels = decode_image(deep(gradient(1.02, np.float32)), whites=whites).pixels
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert set(found.notes["kind"]) == {"range"}


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_hounsfield_units_are_refused_with_what_to_do(tmp_path, kind):
    folder = source(tmp_path, {"a": 255, "b": 200})
    values = (np.linspace(-1024, 3071, 768).reshape(24, 32)).astype(kind)
    (folder / "a/ct.tif").write_bytes(deep(values))
    with pytest.raises(InputError, match="images with signed pixels: 1\n") as error:
        scan_folder(folder)
    assert "a/ct.tif" in str(error.value) and "apply a window" in str(error.value)


def test_a_little_below_0_is_rounding():
    values = gradient(1.0, np.float32)
    values[0, 0] = -0.01
    assert decode_image(deep(values)).pixels[0, 0, 0] == 0
    values[0, 0] = -0.2
    with pytest.raises(DecodeError, match="signed values"):
        decode_image(deep(values))


def test_values_that_are_no_numbers_are_still_quarantined():
    values = gradient(1.0, np.float32)
    values[0, 0] = np.nan
    with pytest.raises(DecodeError, match="NaN or infinite"):
        decode_image(deep(values))


def test_colours_of_16_bits_that_use_few_of_them_are_noted(tmp_path):
    folder = write_shapes(tmp_path / "shapes", classes=2, each=12)
    values = (np.arange(24 * 24 * 3).reshape(24, 24, 3) % 4096).astype(">u2")  # 12 bits of 16
    (folder / "a/x.png").write_bytes(png(24, 24, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
    notes = scan_folder(folder).notes
    (row,) = notes[notes["kind"] == "dark"].itertuples()
    assert row.path == "a/x.png" and "the brightest level is 6 of 255" in row.text


def test_a_model_brings_the_range_it_was_trained_with(project, tmp_path):
    """Through every stage: activations, fine-tuning, evaluation, and predictions of a single image."""
    folder = (project / "data/shapes").resolve()
    for path in folder.rglob("*.png"):
        gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16  # 12 bits
        path.write_bytes(deep(gray, "PNG"))
    (folder / "a/long.png").write_bytes(encode(long_image(8, 1_200)))  # and an elongated image, through every stage
    how(project)
    card = load_card(project / "models/fine_tuned.safetensors")
    assert card.preprocessing.whites == Whites(4095.0, 1.0)
    meta = Activations(project / "data/activations/pooled").meta
    assert meta["preprocessing"]["whites"] == {"integer": 4095.0, "floating": 1.0}
    manifest = read_manifest(project / "data/manifest.parquet")
    row = without_copies(manifest, "test").iloc[0]
    data = (folder / row["path"]).read_bytes()
    predictor = Predictor(project / "models/fine_tuned.safetensors")
    seen = predictor._view_of(data, 0)
    images = ImageSource(folder, 10**6, card.preprocessing, NONE, 0)
    assert torch.equal(seen, images.base_view(row["path"], row["key"]))
    assert seen.max() > 200, "not near black"
    summary = json.loads((project / "reports/data/summary.json").read_text())
    assert summary["warned"]["range"] == len(manifest) - 1 and summary["warned"]["elongated"] == 1
    job = ScoringJob(
        project / "models/fine_tuned.safetensors", sha256_file(project / "models/fine_tuned.safetensors"), 1, 20.0, 1, 1, "cpu"
    )
    rows = predict_folder(folder, job, state=tmp_path / "s.sqlite").rows.set_index("path")
    assert rows.loc["a/long.png", "error"] == "" and (rows["error"] == "").all()


# elongated images


def long_image(short: int, long: int, tall: bool = False) -> np.ndarray:
    shape = (long, short, 3) if tall else (short, long, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("long", [129, 1_000, 20_000, 200_000])
def test_memory_of_an_elongated_image_is_bounded(long, tall):
    """8 x 20,000 pixels became 492 MB at 256 px, 8 x 200,000 4.9 GB."""
    p = Preprocessing(256, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    image = resized(long_image(8, long, tall), p)
    assert min(image.shape[1:]) == 256
    assert image.nbytes <= 3 * 256 * 256 * 16
    middle = long_image(8, long, tall)
    start = (long - 128) // 2
    cut = middle[start : start + 128] if tall else middle[:, start : start + 128]
    assert torch.equal(image, resized(cut, p)), "the middle, where every view looks"


@pytest.mark.parametrize("shape", [(20, 20), (20, 30), (33, 20), (8, 128), (128, 8), (40, 639)])
def test_usual_shapes_are_the_same_to_the_bit(shape):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    plain = tv.resize(torch.from_numpy(pixels).permute(2, 0, 1), [32], InterpolationMode.BILINEAR, antialias=True)
    assert torch.equal(resized(pixels, PRE), plain)


def test_an_elongated_image_goes_through_scan_loader_and_prediction(tmp_path):
    folder = write_shapes(tmp_path / "shapes", classes=2, each=12)
    (folder / "a/long.png").write_bytes(data := encode(long_image(8, 1_200)))
    found = scan_folder(folder)
    (row,) = found.notes[found.notes["kind"] == "elongated"].itertuples()
    assert row.path == "a/long.png" and "8 x 1200" in row.text.replace("1200 x 8", "8 x 1200")
    key = found.manifest.set_index("path").loc["a/long.png", "key"]
    kept = ResizedImageCache(1 << 20)
    images = ImageSource(folder, 10**6, PRE, Augmentation("top_down", True, 45.0, 1.5, 0.1), 0, kept)
    for view in (*images.views("a/long.png", key, range(4)), images.augmented("a/long.png", key, 3)):
        assert view.shape == (3, 32, 32)
    assert sum(image.nbytes for image in kept.images.values()) <= 3 * 32 * 32 * 16
    make_model(tmp_path)
    assert Predictor(tmp_path / "m.safetensors").answers_of_bytes([data]).shape == (1, 3)
    assert torch.equal(base_view(long_image(8, 1_200), PRE), next(iter(images.views("a/long.png", key, [0]))))


# copies


def test_copies_count_once_in_what_judges_and_chooses(tmp_path):
    folder = write_shapes(tmp_path / "shapes", classes=2, each=16)
    for number in range(30):
        (folder / f"a/copy{number}.png").write_bytes((folder / "a/000.png").read_bytes())
    manifest = scan_folder(folder).manifest
    (split,) = set(manifest.loc[manifest["key"] == manifest.set_index("path").loc["a/000.png", "key"], "split"])
    rows = without_copies(manifest, split)
    assert len(rows) == (manifest["split"] == split).sum() - 30
    assert not rows["key"].duplicated().any() and set(rows["split"]) == {split}
    assert list(rows.index) == list(range(len(rows)))


def test_figures_are_of_pictures_and_predictions_of_files(copied):
    """41 of 51 test images were one picture, and its class's figures were the model's."""
    folder = (copied / "data/shapes").resolve()
    manifest = read_manifest(copied / "data/manifest.parquet")
    row = without_copies(manifest, "test").iloc[0]
    before = json.loads((copied / "reports/metrics.json").read_text())
    for number in range(20):
        (folder / row["label"] / f"copy{number}.png").write_bytes((folder / row["path"]).read_bytes())
    how(copied)
    after = json.loads((copied / "reports/metrics.json").read_text())
    assert (after["n_test"], after["n_test_files"]) == (before["n_test"], before["n_test_files"] + 20)
    assert after["fine_tuned"] == before["fine_tuned"]
    predictions = pd.read_parquet(copied / "reports/predictions.parquet")
    assert len(predictions) == after["n_test_files"]
    alike = predictions[predictions["path"].str.contains("copy") | (predictions["path"] == row["path"])]
    assert len({tuple(p) for p in alike["probabilities"]}) == 1
    assert "20 further test files are copies of these" in (copied / "reports/report.html").read_text()


def test_the_manifest_keeps_peaks(tmp_path):
    found = scan_folder(source(tmp_path, {"a": 4095, "b": 3000}), near_duplicates="keep")
    write_manifest(tmp_path / "m.parquet", found.manifest)
    frame = read_manifest(tmp_path / "m.parquet")
    assert sorted(set(frame["peak"])) == [3000.0, 4095.0]
