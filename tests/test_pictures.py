"""Sheets of tiles: laid out by hand, read by Pillow, and back again."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from skimage.metrics import peak_signal_noise_ratio

from gradbook import pictures


def tiles(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def png(array, header=None):
    info = PngImagePlugin.PngInfo()
    if header is not None:
        info.add_text(pictures.HEADER, header)
    file = io.BytesIO()
    Image.fromarray(array.numpy()).save(file, "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


@settings(max_examples=40)
@given(
    count=st.integers(1, 9),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    columns=st.integers(1, 11),
    colour=st.booleans(),
)
def test_tiles_come_back_as_they_were(count, size, columns, colour):
    images = tiles(count, *size, *((3,) if colour else ()))
    found = pictures.decode(pictures.encode(images, columns))
    assert found.dtype == torch.uint8
    assert torch.equal(found, images)


def test_tiles_lie_in_rows_and_columns_on_white():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None].expand(3, 2, 4)
    expected = torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8)
    expected = expected.repeat_interleave(2, 0).repeat_interleave(4, 1)
    assert torch.equal(pictures.sheet(images, 2), expected)


@pytest.mark.parametrize("colour", [(), (3,)])
def test_a_sheet_is_what_pillow_sees(colour):
    images = tiles(5, 3, 4, *colour)
    file = io.BytesIO(base64.b64decode(pictures.encode(images, 2)))
    seen = Image.open(file)
    assert (seen.format, seen.size) == ("PNG", (8, 9))
    assert seen.mode == ("RGB" if colour else "L")
    page = torch.tensor(np.array(seen))
    assert torch.equal(page, pictures.sheet(images, 2))
    for i, tile in enumerate(images):
        row, column = 3 * (i // 2), 4 * (i % 2)
        assert torch.equal(page[row : row + 3, column : column + 4], tile)
    assert (page[6:, 4:] == 255).all()


def test_text_passes_through_json_and_is_the_same_every_time():
    images = tiles(4, 8, 8, 3)
    text = pictures.encode(images)
    assert text.isascii()
    assert "\n" not in text
    assert text == pictures.encode(images.clone())
    assert torch.equal(pictures.decode(json.loads(json.dumps(text))), images)


def test_a_view_is_read_as_it_looks():
    images = tiles(2, 3, 6, 5).permute(0, 2, 3, 1)
    assert torch.equal(pictures.decode(pictures.encode(images)), images)


def test_a_flat_picture_takes_few_bytes():
    assert len(pictures.encode(torch.full((16, 32, 32, 3), 7, dtype=torch.uint8))) < 1_000


def test_no_tiles_make_an_empty_sheet():
    assert pictures.sheet(tiles(0, 4, 5, 3), 3).shape == (0, 15, 3)
    assert pictures.sheet(tiles(0, 4, 5), 3).shape == (0, 15)


@pytest.mark.parametrize(("channels", "colour"), [(1, ()), (3, (3,))])
def test_levels_are_rounded_and_cut_off(channels, colour):
    images = torch.linspace(-0.5, 1.5, 2 * channels * 4 * 5, dtype=torch.float64)
    images = images.reshape(2, channels, 4, 5).requires_grad_()
    found = pictures.to_levels(images)
    assert found.dtype == torch.uint8
    assert found.shape == (2, 4, 5, *colour)
    rows = images.detach().numpy()
    expected = np.rint(255 * rows.clip(0, 1)).astype(np.uint8)
    expected = expected[:, 0] if channels == 1 else np.moveaxis(expected, 1, 3)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("colour", [(), (3,)])
def test_every_level_survives_the_way_to_a_network_and_back(on_the_cpu, colour):
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8)
    images = torch.stack([images, 255 - images, images // 2], -1) if colour else images
    given_to_network = pictures.from_levels(images)
    assert given_to_network.dtype == torch.float32
    assert given_to_network.shape == (4, 3 if colour else 1, 8, 8)
    assert (given_to_network.min(), given_to_network.max()) == (0, 1)
    assert torch.equal(pictures.to_levels(given_to_network), images)


def test_networks_take_float32_whatever_the_default_is(on_the_cpu):
    torch.set_default_dtype(torch.float64)
    try:
        assert pictures.from_levels(tiles(2, 3, 3)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_empty_batches_stay_empty(on_the_cpu):
    assert pictures.from_levels(tiles(0, 4, 5, 3)).shape == (0, 3, 4, 5)
    assert pictures.to_levels(torch.zeros(0, 3, 4, 5)).shape == (0, 4, 5, 3)
    assert pictures.to_levels(torch.zeros(0, 1, 4, 5)).shape == (0, 4, 5)


def test_psnr_of_levels_by_hand():
    black = torch.zeros(2, 2, dtype=torch.uint8)
    spot = torch.tensor([[0, 0], [0, 255]], dtype=torch.uint8)
    expected = pytest.approx(10 * math.log10(4), rel=1e-12)
    assert pictures.psnr(black, spot) == pictures.psnr(spot, black) == expected
    assert pictures.psnr(spot, spot) == math.inf


@pytest.mark.parametrize("shape", [(9, 7), (12, 14, 3)])
def test_psnr_is_that_of_scikit_image(shape):
    one, other = tiles(*shape), tiles(*shape, seed=1)
    theirs = peak_signal_noise_ratio(one.numpy(), other.numpy())
    assert pictures.psnr(one, other) == pytest.approx(theirs, rel=1e-12)


def rough(height=64, width=48):
    """A slope of each colour under some noise."""
    slope = torch.linspace(40, 200, height * width * 3).reshape(height, width, 3).int()
    return (slope + tiles(height, width, 3).int() % 40).to(torch.uint8)


def test_jpeg_is_what_pillow_writes():
    image = rough()
    size, again = pictures.jpeg(image, 30)
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", quality=30, optimize=True)
    assert size == len(file.getvalue())
    assert np.array_equal(again.numpy(), np.array(Image.open(file)))


def test_better_jpeg_is_longer_and_nearer():
    image, qualities = rough(), (5, 20, 50, 90)
    found = pictures.jpeg_curve(image, qualities)
    assert found["quality"] == list(qualities)
    for key in ("bits_per_pixel", "psnr"):
        assert found[key] == sorted(set(found[key]))
    size, again = pictures.jpeg(image, 50)
    assert found["bits_per_pixel"][2] == 8 * size / (64 * 48)
    assert found["psnr"][2] == pictures.psnr(image, again)


BAD = [
    (lambda: pictures.encode(tiles(2, 3, 3).float()), "tiles: must be uint8"),
    (lambda: pictures.encode(tiles(3, 3)), "tiles: must be \\[n, H, W\\]"),
    (lambda: pictures.encode(tiles(2, 3, 3, 4)), "tiles: must be \\[n, H, W\\]"),
    (lambda: pictures.encode(tiles(0, 3, 3)), "tiles: a picture cannot be empty"),
    (lambda: pictures.encode(tiles(2, 0, 3, 3)), "tiles: a picture cannot be empty"),
    (lambda: pictures.encode(tiles(2, 3, 3), 0), "columns: must be at least 1"),
    (lambda: pictures.sheet(tiles(2, 3, 3), -1), "columns: must be at least 1"),
    (lambda: pictures.sheet(tiles(2, 3, 3).bool(), 1), "tiles: must be uint8"),
    (lambda: pictures.decode("no base64!"), "text: is not a picture"),
    (lambda: pictures.decode("é"), "text: is not a picture"),
    (lambda: pictures.decode(""), "text: is not a picture"),
    (lambda: pictures.decode(base64.b64encode(b"no png").decode()), "text: is not a picture"),
    (lambda: pictures.decode(pictures.encode(tiles(4, 9, 9))[:200]), "text: is not a picture"),
    (lambda: pictures.decode(png(tiles(4, 4))), "text: the picture's header"),
    (lambda: pictures.decode(png(tiles(4, 4), "2 0")), "text: the picture's header"),
    (lambda: pictures.decode(png(tiles(4, 4), "two")), "text: the picture's header"),
    (lambda: pictures.decode(png(tiles(4, 4), "2 3")), "text: 1 rows and 3 columns"),
    (lambda: pictures.decode(png(tiles(4, 4), "3 1")), "text: 3 rows and 1 columns"),
    (lambda: pictures.to_levels(torch.zeros(2, 2, 4, 4)), "images: must be \\[n, 1 or 3"),
    (lambda: pictures.to_levels(torch.zeros(3, 4, 4)), "images: must be \\[n, 1 or 3"),
    (lambda: pictures.to_levels(tiles(2, 3, 4, 4)), "images: must be floating"),
    (lambda: pictures.to_levels(torch.full((1, 1, 2, 2), torch.nan)), "images: must be finite"),
    (lambda: pictures.from_levels(torch.zeros(2, 4, 4)), "tiles: must be uint8"),
    (lambda: pictures.from_levels(tiles(4, 4)), "tiles: must be \\[n, H, W\\]"),
    (lambda: pictures.psnr(torch.zeros(2), tiles(2)), "original: must be uint8"),
    (lambda: pictures.psnr(tiles(0, 3), tiles(0, 3)), "original: must be uint8 and not empty"),
    (lambda: pictures.psnr(tiles(2), torch.zeros(2)), "again: must be uint8"),
    (lambda: pictures.psnr(tiles(3, 3), tiles(3)), "again: must be uint8, of"),
    (lambda: pictures.jpeg(tiles(8, 8), 50), "image: must be uint8"),
    (lambda: pictures.jpeg(tiles(8, 8, 3).float(), 50), "image: must be uint8"),
    (lambda: pictures.jpeg(tiles(0, 8, 3), 50), "image: must be uint8"),
    (lambda: pictures.jpeg(tiles(8, 8, 3), 0), "quality: must be from 1"),
    (lambda: pictures.jpeg_curve(tiles(8, 8, 3), (50, 96)), "quality: must be from 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
