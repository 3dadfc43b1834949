"""Small decoders: their sizes by formula, their start, and the file in which they are kept."""

import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gradbook import data
from gradbook.language import plays, pretraining, small_decoders
from gradbook.language.pretraining import Settings
from gradbook.language.small_decoders import MEDIUM, SMALL, Size

TINY = Size("tiny", 8, 2, 2)
VERSE = "the then thee there other, the moth. the the\nthe heath " * 40
SETTINGS = Settings(steps=3, batch=2, length=5, rate=1e-2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Stands in for Shakespeare and his vocabulary, and counts trainings; gives the folder."""
    (tmp_path / ".cache" / "data").mkdir(parents=True)
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    vocabulary, train = plays.byte_pairs(VERSE, 100), pretraining.train
    monkeypatch.setattr(plays, "shakespeare", lambda: VERSE)
    monkeypatch.setattr(plays, "byte_pairs", lambda text: vocabulary)
    trained = []

    def noted(*arguments):
        trained.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(pretraining, "train", noted)
    return tmp_path / ".cache" / "decoders", trained


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Sizes


@pytest.mark.parametrize(
    ("size", "count"), [(SMALL, 1_023_360), (MEDIUM, 4_541_696), (TINY, 1024 * 8 + 8 + 2 * 592)]
)
def test_a_decoder_has_as_many_numbers_as_its_formula_says(size, count):
    with torch.device("meta"):
        model = small_decoders.LlamaForCausalLM(small_decoders.configuration(size))
    assert sum(p.numel() for p in model.parameters()) == count
    assert small_decoders.parameters(size) == count
    assert small_decoders.parameters(size, 100) == count - 924 * size.width


def test_the_architecture_is_that_of_llama_with_shared_keys():
    config = small_decoders.configuration(SMALL)
    assert (config.hidden_size, config.num_hidden_layers) == (128, 5)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.intermediate_size, config.max_position_embeddings) == (336, 128)
    assert config.vocab_size == 1024
    model = small_decoders.untrained(TINY, generator())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (MEDIUM.width, MEDIUM.layers, MEDIUM.heads) == (256, 6, 8)


def test_a_start_is_drawn_from_its_generator_alone():
    state = torch.get_rng_state()
    model = small_decoders.untrained(SMALL, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert same(model, small_decoders.untrained(SMALL, generator(1)))
    assert not same(model, small_decoders.untrained(SMALL, generator(2)))
    for name, part in model.named_parameters():
        assert part.dtype == torch.float32
        if part.ndim == 1:
            assert (part == 1).all()
        else:
            # More than 8000 draws: five standard errors of a standard deviation are 4 %.
            assert part.std().item() == pytest.approx(0.02, rel=0.04), name


def test_a_start_does_not_depend_on_defaults_of_a_page():
    plain = small_decoders.untrained(TINY, generator())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            paged = small_decoders.untrained(TINY, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(plain, paged)
    ids = torch.arange(10)[None]
    assert torch.equal(plain(input_ids=ids).logits, paged(input_ids=ids).logits)


def test_both_decoders_see_as_many_pieces():
    small, medium = (small_decoders.TRAININGS[size] for size in (SMALL, MEDIUM))
    assert small._replace(rate=medium.rate) == medium
    # About two thirds of Shakespeare: no window comes twice.
    assert small.steps * small.batch * small.length == 1_310_720


# The cache


@pytest.fixture
def small_vocabulary(monkeypatch):
    """Lets decoders have the 100 pieces of the verse."""
    untrained = small_decoders.untrained
    monkeypatch.setattr(
        small_decoders, "untrained", lambda size, generator: untrained(size, generator, 100)
    )


def test_a_decoder_is_trained_once_and_read_afterwards(tiny, small_vocabulary, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    folder, trained = tiny
    first = small_decoders.pretrained(TINY, SETTINGS)
    path = small_decoders.checkpoint(TINY, SETTINGS)
    assert (path.parent, list(folder.iterdir())) == (folder, [path])
    second = small_decoders.pretrained(TINY, SETTINGS)
    assert len(trained) == 1
    assert same(first, second)
    assert not first.training
    assert not second.training
    assert all(p.requires_grad for p in second.parameters())
    # By hand: the start and the order of the windows come from one generator of seed 0.
    drawn = generator()
    model = small_decoders.untrained(TINY, drawn)
    known, _ = pretraining.parts(plays.byte_pairs(VERSE), VERSE, 5)
    pretraining.train(model, known, SETTINGS, drawn)
    assert same(model, second)
    assert not same(model, small_decoders.untrained(TINY, generator()))


def test_a_damaged_file_is_refused(tiny, small_vocabulary, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    small_decoders.pretrained(TINY, SETTINGS)
    path = small_decoders.checkpoint(TINY, SETTINGS)
    whole = path.read_bytes()
    weights = safetensors.torch.load(whole)
    del weights["model.norm.weight"]
    for content in (whole[: len(whole) // 2], b"", safetensors.torch.save(weights)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: delete it"):
            small_decoders.pretrained(TINY, SETTINGS)


def test_a_training_that_fails_leaves_no_file(tiny, small_vocabulary, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    with pytest.raises(ValueError, match="rate"):
        small_decoders.pretrained(TINY, SETTINGS._replace(rate=-1.0))
    assert list(tiny[0].iterdir()) == []


def test_a_cache_that_cannot_be_written_is_known_before_the_training(tiny, small_vocabulary):
    folder, trained = tiny
    folder.write_text("not a folder")
    with pytest.raises(FileExistsError):
        small_decoders.pretrained(TINY, SETTINGS)
    assert trained == []


def test_a_file_is_whole_or_none_and_as_open_as_others(tiny, small_vocabulary, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    folder, _ = tiny
    write, beside = Path.write_bytes, []

    def full(path, content):
        beside.append(path)
        write(path, content[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        small_decoders.pretrained(TINY, SETTINGS)
    path = small_decoders.checkpoint(TINY, SETTINGS)
    assert beside[0].parent == folder
    assert beside[0] != path
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(Path, "write_bytes", write)
    before = os.umask(0o022)
    try:
        small_decoders.pretrained(TINY, SETTINGS)
    finally:
        os.umask(before)
    assert list(folder.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_name_is_of_all_that_went_into_a_decoder(tiny, monkeypatch):
    path = small_decoders.checkpoint(TINY, SETTINGS)
    assert re.fullmatch(r"tiny-[0-9a-f]{12}\.safetensors", path.name)
    assert small_decoders.checkpoint(TINY, SETTINGS) == path
    names = {path.name}
    for field, value in (("width", 16), ("layers", 3), ("heads", 4)):
        names.add(small_decoders.checkpoint(TINY._replace(**{field: value}), SETTINGS).name)
    for field in Settings._fields:
        other = SETTINGS._replace(**{field: 2 * getattr(SETTINGS, field)})
        names.add(small_decoders.checkpoint(TINY, other).name)
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", "0" * 64)
    names.add(small_decoders.checkpoint(TINY, SETTINGS).name)
    assert len(names) == 1 + 3 + 4 + 1


def test_a_cache_is_the_nearest_with_data_or_a_new_one_here(tmp_path, monkeypatch):
    # Whatever lies above the test's own folder does not count.
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path.is_relative_to(tmp_path) and is_dir(path))
    here = tmp_path / "home" / "book" / "chapters"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)

    def found():
        return small_decoders.checkpoint(TINY, SETTINGS).parent

    # As a home folder's, which is not ours.
    (tmp_path / "home" / ".cache" / "pip").mkdir(parents=True)
    assert found() == here / ".cache" / "decoders"
    for folder in (tmp_path / "home", here.parent, here):
        (folder / ".cache" / "data").mkdir(parents=True)
        assert found() == folder / ".cache" / "decoders"


BAD = [
    (TINY._replace(heads=3), "size: heads must be even"),
    (TINY._replace(width=10, heads=4), "size: .* got 10/4"),
    (TINY._replace(width=6, heads=2), "size: .* got 6/2"),
    (TINY._replace(width=0), "width: "),
    (TINY._replace(layers=0), "layers: "),
    (TINY._replace(heads=0), "heads: "),
]


@pytest.mark.parametrize(("size", "message"), BAD)
def test_bad_sizes_are_named(size, message):
    for call in (small_decoders.configuration, small_decoders.parameters):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(size)
    with pytest.raises(ValueError, match=r"^pieces: "):
        small_decoders.configuration(TINY, 0)
