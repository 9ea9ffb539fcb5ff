import numpy as np
import pytest
import torch
from PIL import Image

from headstart.images.preprocessing import Preprocessing, normalise
from headstart.images.transforms import Augmentation, augmented_view, base_view, resized
from headstart.seeds import view_generator

PRE = Preprocessing(32, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
LESSON = Augmentation(preset="side_on", flip=True, rotate=10, zoom=1.1, lighting=0.1)
STILL = Augmentation(preset="side_on", flip=False, rotate=0, zoom=1, lighting=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_plain_view_is_the_libraries_resize_and_centre_crop():
    pixels = np.random.default_rng(0).integers(0, 256, (74, 148, 3), dtype=np.uint8)
    size = (74, 37)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(int)
    left, top = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
    crop = torch.from_numpy(resized[top : top + 32, left : left + 32]).permute(2, 0, 1)
    view = base_view(pixels, PRE)
    assert (view.shape, view.dtype) == ((3, 32, 32), torch.uint8)
    assert (view.int() - crop).abs().float().mean() < 1.0  # the same filter, rounded elsewhere


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (7, 3, 3), (640, 480, 3)])
def test_every_shape_of_image_gives_the_input_size(shape):
    pixels = np.full(shape, 200, np.uint8)
    views = [base_view(pixels, PRE), augmented_view(resized(pixels, PRE), PRE, LESSON, view_generator(0, "k", 1))]
    assert all(view.shape == (3, 32, 32) for view in views)


def test_a_still_augmentation_is_the_plain_view():
    assert torch.equal(augmented_view(resized(PIXELS, PRE), PRE, STILL, view_generator(0, "k", 1)), base_view(PIXELS, PRE))


def test_views_are_a_function_of_seed_key_and_number():
    def view(*parts):
        return augmented_view(resized(PIXELS, PRE), PRE, LESSON, view_generator(*parts))

    assert torch.equal(view(0, "k", 1), view(0, "k", 1))
    others = [view(1, "k", 1), view(0, "l", 1), view(0, "k", 2)]
    assert not any(torch.equal(view(0, "k", 1), other) for other in others)


def test_no_black_corners_come_in():
    white = np.full((60, 60, 3), 255, np.uint8)
    turned = Augmentation(preset="side_on", flip=False, rotate=30, zoom=1, lighting=0)
    assert all((augmented_view(resized(white, PRE), PRE, turned, view_generator(0, "k", v)) == 255).all() for v in range(8))


def test_normalise_takes_mean_and_std_off():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor(PRE.mean).view(1, 3, 1, 1), torch.tensor(PRE.std).view(1, 3, 1, 1)
    assert torch.allclose(normalise(x, PRE), (x / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "flip", "wanted"), [("side_on", True, 2), ("top_down", True, 8), ("top_down", False, 1), ("none", True, 1)]
)
def test_presets(preset, flip, wanted):
    """side_on mirrors, top_down takes any of a square's eight symmetries, none does nothing whatever else is set."""
    square = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    other = {"rotate": 10, "zoom": 1.2, "lighting": 0.2} if preset == "none" else {"rotate": 0, "zoom": 1, "lighting": 0}
    augmentation = Augmentation(preset=preset, flip=flip, **other)
    whole = Preprocessing(32, 1.0, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    image = resized(square, whole)
    views = [augmented_view(image, whole, augmentation, view_generator(0, "k", number)) for number in range(80)]
    symmetries = [torch.rot90(turned, turns, (1, 2)) for turned in (image, image.flip(2)) for turns in range(4)]
    seen = {next(i for i, one in enumerate(symmetries) if torch.equal(one, view)) for view in views}
    assert len(seen) == wanted
    assert 0 in seen


def test_only_what_the_crop_needs_is_turned_and_it_makes_no_difference():
    """Against turning the whole image, padded by reflection: the same pixels, but for rounding."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    from headstart.images.transforms import _turn, centre

    smooth = np.kron(np.random.default_rng(0).integers(60, 200, (6, 9, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    image = resized(smooth, PRE)
    for degrees, scale in ((9.0, 1.05), (-30.0, 1.0), (45.0, 1.3), (3.0, 2.5)):
        height, width = image.shape[1:]
        border = [width // 2 - 1, height // 2 - 1]
        padded = tv.pad(image, border, padding_mode="reflect")
        whole = tv.affine(padded, degrees, [0, 0], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        found, wanted = (centre(one, PRE).int()[:, 2:-2, 2:-2] for one in (_turn(image, 32, degrees, scale), whole))
        shifts = [torch.roll(wanted, (y, x), (1, 2))[:, 2:-2, 2:-2] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert min(float((found[:, 2:-2, 2:-2] - one).abs().float().mean()) for one in shifts) < 0.5, (
            degrees,
            scale,
        )  # a rounded crop


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize(("rotate", "zoom"), [(0, 1.1), (10, 1.1), (3, 4.0), (180, 1.5)])
def test_no_zoom_brings_black_borders_in(size, rotate, zoom):
    white = np.full((size + 40, size + 90, 3), 255, np.uint8)
    whole = Preprocessing(size, 1.0, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    augmentation = Augmentation("side_on", True, rotate, zoom, 0)
    image = resized(white, whole)
    assert all((augmented_view(image, whole, augmentation, view_generator(0, "k", v)) == 255).all() for v in range(12))
