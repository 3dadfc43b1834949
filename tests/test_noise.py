import math

import pytest
import scipy.stats
import torch

from gradbook import device
from gradbook.noise import standard_normal, uniform

DRAWS = [standard_normal, uniform]
SAMPLE = 100_000
BELOW_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("draw", DRAWS)
def test_shape_precision_and_place(draw):
    noise = draw(3, 4, seed=0)
    assert (noise.shape, noise.dtype, noise.device.type) == ((3, 4), torch.float64, device().type)
    assert draw(seed=0).shape == ()
    assert draw(0, 2, seed=0).shape == (0, 2)


@pytest.mark.parametrize("draw", DRAWS)
def test_noise_moves_to_the_books_device(draw, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "meta")
    assert draw(2, seed=0).device.type == "meta"


@pytest.mark.parametrize("draw", DRAWS)
def test_noise_is_drawn_on_the_cpu_whatever_the_default_device(draw, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    expected = draw(5, seed=1)
    with torch.device("meta"):
        assert torch.equal(draw(5, seed=1), expected)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_gives_the_same_numbers_and_leaves_the_global_generator_alone(draw):
    state = torch.get_rng_state()
    first = draw(100, seed=7)
    torch.rand(1)
    assert torch.equal(first, draw(100, seed=7))
    assert not torch.equal(first, draw(100, seed=8))
    torch.set_rng_state(state)
    draw(100, seed=7)
    assert torch.equal(torch.get_rng_state(), state)


def test_normals_are_those_of_a_torch_generator():
    generator = torch.Generator().manual_seed(11)
    expected = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    assert torch.equal(standard_normal(2, 5, seed=11).cpu(), expected)


def test_uniforms_are_those_of_a_torch_generator_to_one_unit_in_the_last_place():
    generator = torch.Generator().manual_seed(11)
    expected = torch.rand(1000, generator=generator, dtype=torch.float64)
    assert (uniform(1000, seed=11).cpu() - expected).abs().max() <= 2.0**-53


def test_uniforms_stay_inside_where_rand_reaches_its_ends(monkeypatch):
    ends = [0.0, 2.0**-53, 0.5, 1 - 2.0**-52, BELOW_ONE]
    monkeypatch.setattr(
        torch, "rand", lambda *_, **options: torch.tensor(ends, dtype=options["dtype"])
    )
    inside = uniform(5, seed=0).cpu()
    assert inside.min() == 2.0**-54
    assert inside.max() == BELOW_ONE
    assert inside.log().isfinite().all()
    assert torch.log1p(-inside).isfinite().all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("draw", "law", "fourth"), [(standard_normal, "norm", 3), (uniform, "uniform", 1 / 80)]
)
def test_the_law_is_right(draw, law, fourth, seed):
    sample = draw(SAMPLE, seed=seed).cpu()
    mean, variance = (float(x) for x in getattr(scipy.stats, law).stats())
    assert abs(float(sample.mean()) - mean) <= 4.5 * math.sqrt(variance / SAMPLE)
    squares = float((sample - mean).square().mean())
    assert abs(squares - variance) <= 4.5 * math.sqrt((fourth - variance**2) / SAMPLE)
    # About as rare as 4.5 standard errors.
    assert scipy.stats.kstest(sample.numpy(), law).pvalue > 7e-6
