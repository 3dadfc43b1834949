"""The photographs of scikit-image, as its own reader sees them, and their patches."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import photographs

SHAPES = {
    "astronaut": (512, 512, 3),
    "chelsea": (300, 451, 3),
    "immunohistochemistry": (512, 512, 3),
    "hubble_deep_field": (872, 1000, 3),
    "retina": (1411, 1411, 3),
    "coffee": (400, 600, 3),
    "rocket": (427, 640, 3),
}


@pytest.fixture(scope="module")
def training():
    return photographs.training_patches()


@pytest.fixture(scope="module")
def held_out():
    return photographs.held_out_patches()


def numbered(height, width):
    """An image whose channels tell the row, the column and nothing."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)], 2).to(torch.uint8)


@pytest.mark.parametrize("name", photographs.NAMES)
def test_pixels_are_those_of_the_packages_own_reader(name):
    found = photographs.photograph(name)
    assert (tuple(found.shape), found.dtype) == (SHAPES[name], torch.uint8)
    assert found.device.type == "cpu"
    assert np.array_equal(found.numpy(), getattr(skimage.data, name)())


def test_every_photograph_has_a_source_and_one_part():
    assert tuple(SHAPES) == photographs.NAMES == tuple(photographs.SOURCES)
    for author, licence in photographs.SOURCES.values():
        assert author
        assert licence in ("CC0", "public domain", "no known copyright restrictions")
    assert photographs.TRAINING + photographs.HELD_OUT == photographs.NAMES
    assert photographs.HELD_OUT == ("coffee", "rocket")


def test_the_package_is_not_imported():
    code = (
        "import sys; from gradbook import photographs;"
        "photographs.photograph('chelsea'); print('skimage' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_default_device_and_type_of_torch_change_nothing():
    expected = photographs.photograph("chelsea")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = photographs.photograph("chelsea")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.device.type == "cpu"
    assert torch.equal(found, expected)


@settings(max_examples=40)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    size=st.integers(1, 6),
    stride=st.integers(1, 7),
)
def test_patches_are_all_the_squares_of_a_grid_row_by_row(height, width, size, stride):
    image = numbered(height, width)
    corners = [
        (row, column)
        for row in range(0, height - size + 1, stride)
        for column in range(0, width - size + 1, stride)
    ]
    found = photographs.patches(image, size, stride)
    assert found.shape == (len(corners), size, size, 3)
    assert found.is_contiguous()
    for patch, (row, column) in zip(found, corners, strict=True):
        assert torch.equal(patch, image[row : row + size, column : column + size])


def test_patches_side_by_side_are_the_image_again():
    image = photographs.photograph("coffee")[:384, :576]
    found = photographs.patches(image, 32, 32)
    rows = found.reshape(12, 18, 32, 32, 3).transpose(1, 2).reshape(384, 576, 3)
    assert torch.equal(rows, image)


@pytest.mark.parametrize(
    ("multiple", "size"), [(4, (424, 640)), (100, (400, 600)), (1, (427, 640))]
)
def test_a_cropped_photograph_keeps_its_upper_left(multiple, size):
    found = photographs.cropped("rocket", multiple)
    assert found.shape == (*size, 3)
    assert torch.equal(found, photographs.photograph("rocket")[: size[0], : size[1]])


def test_training_patches_come_from_every_photograph_at_its_pace(training):
    assert training.shape == (15_841, 32, 32, 3)
    assert training.dtype == torch.uint8
    strides = {"hubble_deep_field": 16, "retina": 24}
    start = 0
    for name in photographs.TRAINING:
        expected = photographs.patches(photographs.photograph(name), 32, strides.get(name, 8))
        assert torch.equal(training[start : start + len(expected)], expected)
        assert 1_800 <= len(expected) <= 3_750
        start += len(expected)
    assert start == len(training)


def test_held_out_patches_do_not_overlap(held_out):
    assert held_out.shape == (476, 32, 32, 3)
    assert torch.equal(held_out[0], photographs.photograph("coffee")[:32, :32])
    assert torch.equal(held_out[1], photographs.photograph("coffee")[:32, 32:64])
    assert torch.equal(held_out[216], photographs.photograph("rocket")[:32, :32])


def test_nothing_held_out_is_trained_on(training, held_out):
    assert not set(photographs.TRAINING) & set(photographs.HELD_OUT)
    seen = {patch.numpy().tobytes() for patch in training}
    assert not seen & {patch.numpy().tobytes() for patch in held_out}


def test_sizes_and_strides_can_be_chosen():
    counts = [
        len(photographs.patches(photographs.photograph(name), 64, 64 * pace))
        for name, pace in zip(photographs.TRAINING, (1, 1, 1, 2, 3), strict=True)
    ]
    assert photographs.training_patches(64, 64).shape == (sum(counts), 64, 64, 3)
    assert photographs.held_out_patches(64, 100).shape == (4 * 6 + 4 * 6, 64, 64, 3)


def test_an_image_smaller_than_a_patch_has_none():
    for height, width in ((3, 9), (9, 3), (0, 5)):
        found = photographs.patches(numbered(height, width), 4, 1)
        assert (tuple(found.shape), found.dtype) == ((0, 4, 4, 3), torch.uint8)


def test_the_digest_tells_which_files(monkeypatch):
    found = photographs.digest()
    assert found == photographs.digest()
    assert len(found) == 64
    for name in photographs.NAMES:
        other = photographs.FILES | {name: (photographs.FILES[name][0], "0" * 64)}
        with monkeypatch.context() as patch:
            patch.setattr(photographs, "FILES", other)
            assert photographs.digest() != found


def test_another_file_is_refused(tmp_path):
    content = photographs.photograph_file("rocket").read_bytes()
    other = tmp_path / "rocket.jpg"
    other.write_bytes(content[:-1] + b"\0")
    with pytest.raises(ValueError, match="has SHA-256 .*run `make setup`"):
        photographs.photograph("rocket", other)
    other.write_bytes(content)
    with pytest.raises(ValueError, match="has SHA-256"):
        photographs.photograph("coffee", other)
    assert photographs.photograph("rocket", other).shape == SHAPES["rocket"]


def test_a_missing_file_or_package_says_what_to_run(tmp_path, monkeypatch):
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (empty, tmp_path / "none.png"):
        with pytest.raises(FileNotFoundError, match="missing or empty: run `make setup`"):
            photographs.photograph("coffee", path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="scikit-image is not installed"):
        photographs.photograph("coffee")


BAD = [
    (lambda: photographs.photograph("camera"), "name: must be one of astronaut"),
    (lambda: photographs.photograph_file("../secret"), "name: must be one of"),
    (lambda: photographs.cropped("camera"), "name: must be one of"),
    (lambda: photographs.cropped("rocket", 0), "multiple: must be at least 1"),
    (lambda: photographs.patches(torch.zeros(8, 8), 2, 2), "image: must be \\[H, W, 3\\]"),
    (lambda: photographs.patches(torch.zeros(3, 8, 8), 2, 2), "image: must be \\[H, W, 3\\]"),
    (lambda: photographs.patches(numbered(8, 8), 0, 2), "size: must be at least 1"),
    (lambda: photographs.patches(numbered(8, 8), 2, 0), "stride: must be at least 1"),
    (lambda: photographs.training_patches(0), "size: "),
    (lambda: photographs.held_out_patches(32, -1), "stride: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
