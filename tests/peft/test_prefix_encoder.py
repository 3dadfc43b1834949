"""Prefixes computed by a network: the library's, folded ones, what is trained, and bad input."""

import copy

import peft
import pytest
import torch

from gradbook.peft import prefix, prefix_encoder
from gradbook.peft.injection import count

WIDTH, LAYERS, LENGTH = 8, 2, 3
# PEFT asks the model for something that transformers has renamed.
DEPRECATED = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def close(a, b, bound=1e-12):
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def half_padded(ids):
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    return mask


def library(model, **options):
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH, **options
    )
    return peft.get_peft_model(copy.deepcopy(model), config).double().eval()


def source(layers=LAYERS, length=LENGTH, width=WIDTH, hidden=5, **options):
    to = {"dtype": torch.float64} | options
    made = prefix_encoder.Reparameterized(layers, length, width, hidden, generator(3), **to)
    with torch.no_grad():
        made.inner_bias.copy_(normal(hidden, seed=4))
        made.outer_bias.copy_(normal(2 * layers * width, seed=5))
    return made


@pytest.mark.filterwarnings(DEPRECATED)
def test_a_reparameterized_prefix_is_the_librarys(tiny_bert):
    theirs = library(tiny_bert, prefix_projection=True, encoder_hidden_size=5)
    encoder, made = theirs.prompt_encoder["default"], source()
    values = [made.embedding, made.inner.T, made.inner_bias, made.outer.T, made.outer_bias]
    with torch.no_grad():
        for theirs_, ours in zip(encoder.parameters(), values, strict=True):
            theirs_.copy_(ours)
    assert count(encoder) == count(made)
    expected = encoder(torch.arange(LENGTH)).unflatten(-1, (LAYERS, 2, WIDTH))
    close(made.folded(), expected.permute(1, 2, 0, 3).detach())


def test_a_folded_prefix_gives_the_same_outputs(tiny_bert, ids):
    made, mask = source(), half_padded(ids)
    done = prefix_encoder.put_reparameterized(tiny_bert, made)
    inner = LENGTH * WIDTH + WIDTH * 5 + 5 + (5 + 1) * 2 * LAYERS * WIDTH
    assert done.report.trainable == count(made)[0] == inner
    ours = tiny_bert(ids, attention_mask=mask)[0]
    done.undo()
    assert (ours - tiny_bert(ids, attention_mask=mask)[0]).abs().max() > 1e-3
    done = prefix.put(tiny_bert, made.folded())
    assert done.report.trainable == prefix.prefix_parameters(LAYERS, LENGTH, WIDTH)
    close(tiny_bert(ids, attention_mask=mask)[0], ours)
    assert not made.folded().requires_grad


def test_the_start_of_the_reparameterization():
    made = prefix_encoder.Reparameterized(2, 500, 16, 64, generator(), dtype=torch.float64)
    assert abs(made.embedding.std().item() - 1) < 0.05
    assert 0.24 < made.inner.abs().max() <= 0.25
    assert 0.12 < made.outer.abs().max() <= 0.125
    assert not made.inner_bias.any()
    assert not made.outer_bias.any()


def test_the_prefix_is_trained_alone_and_as_a_whole(tiny_bert, ids):
    made = source()
    done = prefix_encoder.put_reparameterized(tiny_bert, made)
    digest, before = done.digest(), made.folded()
    trained = [p for p in tiny_bert.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in made.parameters()}
    old = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, 0.1)
    tiny_bert(ids)[0][..., 0].square().sum().backward()
    optimizer.step()
    assert done.digest() == digest
    assert all(not torch.equal(p, o) for p, o in zip(trained, old, strict=True))
    assert (made.folded() != before).flatten(2).any(-1).all()


def test_default_types_and_devices_change_nothing():
    made = source(dtype=torch.float32)
    with torch.device("meta"):
        again = prefix_encoder.Reparameterized(LAYERS, LENGTH, WIDTH, 5, generator(3))
    assert torch.equal(again.embedding, made.embedding)
    assert {(p.dtype, p.device.type) for p in again.parameters()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("size", ["layers", "length", "width", "hidden"])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match=f"^{size}: must be at least 1"):
        source(**{size: 0})


BAD_SOURCES = [
    ({"layers": 3}, "source: has 3 layers"),
    ({"width": 4}, "source: must be of width 8"),
    ({"dtype": torch.float32}, "source: must be of width 8 and torch.float64"),
]


@pytest.mark.parametrize(("options", "message"), BAD_SOURCES)
def test_a_source_that_does_not_fit_is_named_and_changes_nothing(tiny_bert, options, message):
    modules = list(tiny_bert.named_modules())
    with pytest.raises(ValueError, match=f"^{message}"):
        prefix_encoder.put_reparameterized(tiny_bert, source(**options))
    assert list(tiny_bert.named_modules()) == modules
    assert all(p.requires_grad for p in tiny_bert.parameters())


def test_a_source_on_another_device_is_named(tiny_bert):
    away = source().to("meta")
    with pytest.raises(ValueError, match="^source: must be on cpu, is on meta"):
        prefix_encoder.put_reparameterized(tiny_bert, away)
    with pytest.raises(ValueError, match="^source: must be on meta, is on cpu"):
        prefix_encoder.put_reparameterized(tiny_bert.to("meta"), source())


@pytest.mark.parametrize("index", [-1, LAYERS])
def test_an_index_outside_the_source_is_refused(tiny_bert, index):
    layer = tiny_bert.encoder.layer[0].attention.self
    with pytest.raises(ValueError, match=r"^index: must be from 0 to 1"):
        prefix_encoder.ReparameterizedSelfAttention(layer, source(), index)
