"""Photographs under free licences that come inside the scikit-image package, and their patches.

The files are found without importing scikit-image, checked against a SHA-256 and decoded by Pillow.
Two photographs are held out whole: no patch of theirs is ever trained on.
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Of the files in scikit-image 0.26.0. The decoded pixels of a JPEG file may differ by a level
# between decoders.
FILES = {
    "astronaut": (
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    "chelsea": (
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    "immunohistochemistry": (
        "ihc.png",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    ),
    "hubble_deep_field": (
        "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    "retina": (
        "retina.jpg",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    ),
    "coffee": (
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    "rocket": (
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
}
NAMES = tuple(FILES)
HELD_OUT = ("coffee", "rocket")
TRAINING = tuple(name for name in NAMES if name not in HELD_OUT)
# The two large photographs are stepped through faster, so that none outnumbers the others.
PACE = {"hubble_deep_field": 2, "retina": 3}


class Source(NamedTuple):
    """Who took a photograph, and under which terms the package passes it on."""

    author: str
    licence: str


SOURCES = {
    "astronaut": Source("NASA", "public domain"),
    "chelsea": Source("Stéfan van der Walt", "CC0"),
    "immunohistochemistry": Source(
        "Center for Microscopy and Molecular Imaging", "no known copyright restrictions"
    ),
    "hubble_deep_field": Source("NASA", "public domain"),
    "retina": Source("Mikael Häggström", "CC0"),
    "coffee": Source("Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0"),
    "rocket": Source("SpaceX", "public domain"),
}


def photograph(name: str, path: Path | None = None) -> Tensor:
    """Read a photograph.

    Args:
        name: one of ``NAMES``.
        path: the file; by default see :func:`photograph_file`.

    Returns:
        uint8 [H, W, 3], red, green and blue, on the CPU.

    Raises:
        FileNotFoundError: if scikit-image is not installed, or the file in it is missing or empty.
        ValueError: if there is no photograph of that name, or the file is not the one whose SHA-256
            is recorded here.
    """
    path = photograph_file(name) if path is None else path
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        raise FileNotFoundError(f"{path} is missing or empty: run `make setup`")
    found, expected = hashlib.sha256(content).hexdigest(), _file(name)[1]
    if found != expected:
        raise ValueError(f"{path} has SHA-256 {found}, not {expected}: run `make setup`")
    with Image.open(io.BytesIO(content)) as image:
        return torch.tensor(np.array(image.convert("RGB")), device="cpu")


def photograph_file(name: str) -> Path:
    """Find the file of a photograph without importing scikit-image.

    Args:
        name: one of ``NAMES``.

    Returns:
        The path at which the installed package keeps it, whether or not it is there.

    Raises:
        FileNotFoundError: if scikit-image is not installed.
        ValueError: if there is no photograph of that name.
    """
    file, _ = _file(name)
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("scikit-image is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0], "data", file)


def cropped(name: str, multiple: int = 4) -> Tensor:
    """Read a photograph, less the last rows and columns that fill no whole multiple.

    Args:
        name: one of ``NAMES``.
        multiple: what divides both sides, by default the side of a code's
            place in a VQ-VAE.

    Returns:
        uint8 [H, W, 3], as :func:`photograph`.

    Raises:
        FileNotFoundError: as :func:`photograph`.
        ValueError: as :func:`photograph`, or if ``multiple`` is not
            positive.
    """
    if multiple < 1:
        raise ValueError(f"multiple: must be at least 1, got {multiple}")
    image = photograph(name)
    height, width = (side - side % multiple for side in image.shape[:2])
    return image[:height, :width]


def patches(image: Tensor, size: int, stride: int) -> Tensor:
    """Cut a photograph into squares, row by row.

    Args:
        image: [H, W, 3].
        size: of a square's side.
        stride: from a square to the next, down and to the right; squares
            overlap where it is less than the size. What is left at the
            lower and right edges is dropped.

    Returns:
        [n, size, size, 3], of the image's type; none where the image is
        smaller than a square.

    Raises:
        ValueError: if the image has another shape, or the size or the
            stride is not positive.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: must be [H, W, 3], got {list(image.shape)}")
    for name, value in (("size", size), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if min(image.shape[:2]) < size:
        return image.new_empty(0, size, size, 3)
    windows = image.unfold(0, size, stride).unfold(1, size, stride)
    # unfold puts the axes of a window last: rows, columns, colour, y, x.
    return windows.permute(0, 1, 3, 4, 2).flatten(0, 1).contiguous()


def training_patches(size: int = 32, stride: int = 8) -> Tensor:
    """Cut the five photographs of training into patches.

    The stride is that of the three small photographs; it is twice as long in the Hubble Deep Field
    and three times as long in the retina.

    Args:
        size: of a patch's side.
        stride: from a patch to the next.

    Returns:
        uint8 [n, size, size, 3], photograph after photograph as in ``TRAINING``; 15 841 patches at
        the default size and stride.

    Raises:
        ValueError: as :func:`patches`.
    """
    cut = [patches(photograph(name), size, stride * PACE.get(name, 1)) for name in TRAINING]
    return torch.cat(cut)


def held_out_patches(size: int = 32, stride: int = 32) -> Tensor:
    """Cut the two held-out photographs into patches.

    Args:
        size: of a patch's side.
        stride: from a patch to the next; by default they do not overlap.

    Returns:
        uint8 [n, size, size, 3], photograph after photograph as in ``HELD_OUT``; 476 patches at the
        default size and stride.

    Raises:
        ValueError: as :func:`patches`.
    """
    return torch.cat([patches(photograph(name), size, stride) for name in HELD_OUT])


def digest() -> str:
    """Summarize the photographs that a record depends on.

    Returns:
        The SHA-256 of the files' SHA-256, in the order of ``NAMES``. It needs no file on this
        machine: :func:`photograph` refuses all others.
    """
    return hashlib.sha256("".join(sha256 for _, sha256 in FILES.values()).encode()).hexdigest()


def _file(name: str) -> tuple[str, str]:
    if name not in FILES:
        raise ValueError(f"name: must be one of {', '.join(NAMES)}, got {name!r}")
    return FILES[name]
