"""Pictures of 8-bit levels: kept as text, compared, and compressed by JPEG.

Kept as text, they are one PNG sheet of equal tiles in base64, for a record's JSON. A sheet says in
its own header how many tiles it has and in how many columns they lie, so that :func:`decode` needs
nothing but the text. No level is rounded on the way.
"""

import base64
import io
import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.devices import device

HEADER = "tiles"
WHITE = 255


def encode(tiles: Tensor, columns: int = 8) -> str:
    """Write tiles as the base64 text of one PNG file.

    Args:
        tiles: uint8 [n, H, W], grey, or [n, H, W, 3], colour; none empty.
        columns: of the sheet; what is left of its last row is white.

    Returns:
        ASCII text, without line breaks.

    Raises:
        ValueError: as :func:`sheet`, or if a side of the tiles is 0: PNG has no empty picture.
    """
    page = sheet(tiles, columns).cpu()
    if not page.numel():
        raise ValueError(f"tiles: a picture cannot be empty, got {list(tiles.shape)}")
    header = PngImagePlugin.PngInfo()
    header.add_text(HEADER, f"{len(tiles)} {columns}")
    file = io.BytesIO()
    Image.fromarray(page.numpy()).save(file, "PNG", optimize=True, pnginfo=header)
    return base64.b64encode(file.getvalue()).decode("ascii")


def decode(text: str) -> Tensor:
    """Read the tiles that :func:`encode` wrote.

    Args:
        text: base64 of a sheet.

    Returns:
        uint8 [n, H, W] or [n, H, W, 3], as they were, on the CPU.

    Raises:
        ValueError: if the text is not such a sheet.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            header = image.info.get(HEADER, "")
            page = torch.tensor(np.array(image), device="cpu")
    except (ValueError, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError("text: is not a picture in base64") from error
    if not re.fullmatch("[1-9][0-9]* [1-9][0-9]*", header):
        raise ValueError("text: the picture's header does not say how many tiles it has")
    count, columns = map(int, header.split())
    rows = -(-count // columns)
    if page.shape[0] % rows or page.shape[1] % columns:
        raise ValueError(f"text: {rows} rows and {columns} columns do not divide the picture")
    grid = page.unflatten(1, (columns, -1)).unflatten(0, (rows, -1))
    return grid.transpose(1, 2).flatten(0, 1)[:count]


def sheet(tiles: Tensor, columns: int) -> Tensor:
    """Lay tiles out side by side, row after row.

    Args:
        tiles: uint8 [n, H, W], grey, or [n, H, W, 3], colour.
        columns: of the sheet; what is left of its last row is white.

    Returns:
        uint8 [rows * H, columns * W] or [rows * H, columns * W, 3].

    Raises:
        ValueError: if the tiles have another type or shape, or ``columns`` is not positive.
    """
    _require_tiles(tiles)
    if columns < 1:
        raise ValueError(f"columns: must be at least 1, got {columns}")
    rows = -(-len(tiles) // columns)
    white = tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), WHITE)
    # An explicit number of rows: -1 has no answer where there are none.
    grid = torch.cat([tiles, white]).unflatten(0, (rows, columns))
    return grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def to_levels(images: Tensor) -> Tensor:
    """Round what a network returns to the 256 levels of a picture.

    Args:
        images: [n, 1, H, W] or [n, 3, H, W], from 0 (black) to 1; what
            lies beyond is cut off.

    Returns:
        uint8 [n, H, W] or [n, H, W, 3].

    Raises:
        ValueError: if the images have another shape, hold integers, or
            one is not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        shape = list(images.shape)
        raise ValueError(f"images: must be [n, 1 or 3, H, W], got {shape}")
    if not images.is_floating_point():
        raise ValueError(f"images: must be floating, got {images.dtype}")
    require_finite(images=images)
    levels = (WHITE * images.detach().clamp(0, 1)).round().to(torch.uint8)
    return levels[:, 0] if images.shape[1] == 1 else levels.permute(0, 2, 3, 1)


def from_levels(tiles: Tensor) -> Tensor:
    """Turn pictures into what a network takes.

    Args:
        tiles: uint8 [n, H, W], grey, or [n, H, W, 3], colour.

    Returns:
        float32 [n, 1, H, W] or [n, 3, H, W] from 0 (black) to 1, on the
        book's device.

    Raises:
        ValueError: as :func:`sheet`.
    """
    _require_tiles(tiles)
    channels = tiles[:, None] if tiles.ndim == 3 else tiles.permute(0, 3, 1, 2)
    return channels.to(device()).to(torch.float32) / WHITE


def psnr(original: Tensor, again: Tensor) -> float:
    """Compare two pictures of 8-bit levels.

    Args:
        original: uint8, of any shape, not empty.
        again: uint8, of the same shape.

    Returns:
        The peak signal-to-noise ratio 10 log10(255^2 / mse) in decibels;
        infinite for equal pictures.

    Raises:
        ValueError: if a type is another, the shapes differ, or there is
            no pixel.
    """
    if original.dtype != torch.uint8 or not original.numel():
        raise ValueError("original: must be uint8 and not empty")
    if again.dtype != torch.uint8 or again.shape != original.shape:
        raise ValueError("again: must be uint8, of the original's shape")
    error = (original.double() - again.double()).square().mean().item()
    return 10 * math.log10(WHITE**2 / error) if error else math.inf


def jpeg(image: Tensor, quality: int) -> tuple[int, Tensor]:
    """Compress a picture by JPEG, with half the resolution for colour and optimal tables.

    Args:
        image: uint8 [H, W, 3], on the CPU.
        quality: from 1 to 95.

    Returns:
        The bytes of the whole file, and the image that it holds, uint8 [H, W, 3].

    Raises:
        ValueError: if the image has another type or shape or no pixel, or the quality is not from 1
            to 95.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.numel():
        raise ValueError(f"image: must be uint8 [H, W, 3], got {list(image.shape)}")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality: must be from 1 to 95, got {quality}")
    settings = {"quality": quality, "optimize": True, "subsampling": "4:2:0"}
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", **settings)
    with Image.open(file) as again:
        return len(file.getvalue()), torch.tensor(np.array(again), device="cpu")


def jpeg_curve(image: Tensor, qualities: Sequence[int]) -> dict[str, list[float]]:
    """Compress a picture by JPEG at several qualities.

    Args:
        image: uint8 [H, W, 3], on the CPU.
        qualities: each from 1 to 95.

    Returns:
        Lists: ``quality``, ``bits_per_pixel`` and ``psnr``.

    Raises:
        ValueError: as :func:`jpeg`.
    """
    pixels = math.prod(image.shape[:2])
    files = [jpeg(image, quality) for quality in qualities]
    return {
        "quality": list(qualities),
        "bits_per_pixel": [8 * size / pixels for size, _ in files],
        "psnr": [psnr(image, again) for _, again in files],
    }


def _require_tiles(tiles: Tensor) -> None:
    if tiles.dtype != torch.uint8:
        raise ValueError(f"tiles: must be uint8, got {tiles.dtype}")
    if not (tiles.ndim == 3 or (tiles.ndim == 4 and tiles.shape[3] == 3)):
        raise ValueError(f"tiles: must be [n, H, W] or [n, H, W, 3], got {list(tiles.shape)}")
