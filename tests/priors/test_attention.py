"""Attention and its block: against plain loops, and with a cache against the whole sequence."""

import pytest
import torch

from gradbook.priors.attention import STD, Attention, Block, Cache


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def test_attention_is_the_definition(stirred):
    """Softmax of scaled products over the past, head by head, with plain loops."""
    layer, x = stirred(Attention(6, 3, 0.1, generator())), normal(2, 5, 6)
    found = layer(x)
    queries, keys, values = layer.inward(x).chunk(3, -1)
    mixed = torch.zeros(2, 5, 6, dtype=torch.float64)
    for b in range(2):
        for head in range(3):
            own = slice(2 * head, 2 * head + 2)
            for t in range(5):
                scores = keys[b, : t + 1, own] @ queries[b, t, own] / 2**0.5
                mixed[b, t, own] = scores.softmax(0) @ values[b, : t + 1, own]
    torch.testing.assert_close(found, layer.outward(mixed), rtol=1e-12, atol=1e-12)


def test_attention_with_a_cache_is_attention(stirred):
    layer, x = stirred(Attention(6, 3, 0.1, generator())), normal(2, 5, 6)
    cache = Cache(*(torch.full((2, 3, 5, 2), float("nan")).double() for _ in range(2)))
    with torch.no_grad():
        parts = [layer.extend(x[:, :3], cache, 0)]
        parts += [layer.extend(x[:, t : t + 1], cache, t) for t in (3, 4)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=1e-12, atol=1e-12)


def test_a_block_is_normalized_before_each_part_and_adds(stirred):
    block, x = stirred(Block(6, 2, 0.1, generator())), normal(2, 5, 6)

    def normalized(layer, x):
        spread, mean = torch.std_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) / (spread.square() + 1e-5).sqrt() * layer.weight + layer.bias

    middle = x + block.attention(normalized(block.norm1, x))
    wide = block.wide(normalized(block.norm2, middle))
    phi = torch.distributions.Normal(0.0, 1.0).cdf(wide)
    torch.testing.assert_close(block(x), middle + block.narrow(wide * phi), rtol=1e-9, atol=1e-9)


def test_a_block_with_a_cache_is_the_block(stirred):
    block, x = stirred(Block(6, 2, 0.1, generator())), normal(3, 4, 6)
    cache = Cache(*(torch.full((3, 2, 4, 3), float("nan")).double() for _ in range(2)))
    with torch.no_grad():
        parts = [block.extend(x[:, t : t + 1], cache, t) for t in range(4)]
    torch.testing.assert_close(torch.cat(parts, 1), block(x), rtol=1e-12, atol=1e-12)


def test_the_last_weights_have_their_own_start():
    block = Block(64, 4, 0.003, generator())
    for layer, std in (
        (block.attention.inward, STD),
        (block.wide, STD),
        (block.attention.outward, 0.003),
        (block.narrow, 0.003),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)


def test_an_empty_batch_gives_an_empty_result():
    block = Block(6, 2, 0.1, generator())
    assert block(torch.zeros(0, 4, 6)).shape == (0, 4, 6)
