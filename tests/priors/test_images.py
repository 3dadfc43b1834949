"""Images of codes: decoding in chunks, bits of grey levels, and mean pixels."""

import math

import pytest
import torch
from torch import nn

from gradbook import discretized
from gradbook.priors import images


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


class Shades(nn.Module):
    """Shows code k as a patch of 2 by 2 pixels of level 100 + k of 255."""

    def decode(self, codes):
        patches = codes.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return (100 + patches.double())[:, None] / 255


def noisy(codes, seed):
    """Levels whose law about the decoded ones is logistic of scale 5, rounded."""
    means = 255 * Shades().decode(codes)
    u = torch.rand(means.shape, generator=generator(seed), dtype=torch.float64)
    return (means + 5 * u.logit()).round().clamp(0, 255) / 255


def test_decoding_in_chunks_is_decoding(monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 3)
    codes = integers(8, 2, 3)
    assert torch.equal(images.decoded(Shades(), codes), Shades().decode(codes))


def test_the_scale_is_found_on_the_training_images_and_used_on_the_test_images():
    codes = integers(200, 3, 3, seed=1), integers(50, 3, 3, seed=2)
    train, test = noisy(codes[0], 3), noisy(codes[1], 4) * 0.9
    found = images.level_bits(Shades(), (codes[0], train), (codes[1], test))
    assert found.scale == pytest.approx(5 / 255, rel=0.05)
    levels = (255 * test).round().long()
    log_prob = discretized.log_prob(levels, Shades().decode(codes[1]), found.scale)
    assert found.bits == pytest.approx(-log_prob.mean().item() / math.log(2), rel=1e-12)


def test_levels_have_the_entropy_of_their_law():
    """The mean length under the true law is its entropy, here by a sum over levels."""
    codes = torch.zeros(3_000, 2, 2, dtype=torch.int64)
    found = images.level_bits(Shades(), *[(codes, noisy(codes, seed)) for seed in (1, 2)])
    law = discretized.log_prob(torch.arange(256), torch.tensor(100 / 255).double(), 5 / 255)
    entropy = -(law.exp() * law).sum().item() / math.log(2)
    spread = ((law / math.log(2)).square() @ law.exp() - entropy**2).sqrt().item()
    assert abs(found.bits - entropy) < 4.5 * spread / 48_000**0.5


def test_mean_pixels_are_rounded_means():
    grey = torch.rand(5, 1, 6, 6, generator=generator())
    found = images.pooled(grey, 3, 16)
    for n in range(5):
        for i in range(3):
            for j in range(3):
                patch = grey[n, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                assert found[n, i, j] == round(15 * patch.mean().item())
    ends = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert images.pooled(ends, 2, 16).flatten(1).tolist() == [[0] * 4, [15] * 4]
    assert images.pooled(grey[:0], 3, 16).shape == (0, 3, 3)


CODES = integers(2, 2, 2)
GREY = torch.full((2, 1, 4, 4), 0.5)
BAD = [
    (lambda: images.decoded(Shades(), CODES[:0]), "codes: must be at least one"),
    (lambda: images.level_bits(Shades(), (CODES[:1], GREY), (CODES, GREY)), "codes: must be of 2"),
    (lambda: images.level_bits(Shades(), (CODES, GREY), (CODES, GREY + 1)), "images: must be from"),
    (lambda: images.pooled(GREY[0], 2, 16), "images: must be \\[n, 1, S, S"),
    (lambda: images.pooled(GREY[..., :2], 2, 16), "images: must be \\[n, 1, S, S"),
    (lambda: images.pooled(GREY.expand(2, 3, 4, 4), 2, 16), "images: must be \\[n, 1, S, S"),
    (lambda: images.pooled(GREY, 3, 16), "side: must divide 4"),
    (lambda: images.pooled(GREY, 0, 16), "side: must be at least 1"),
    (lambda: images.pooled(GREY, 2, 1), "levels: must be at least 2"),
    (lambda: images.pooled(GREY * math.nan, 2, 16), "images: must be from"),
    (lambda: images.pooled(GREY - 1, 2, 16), "images: must be from"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
