import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from gradbook import device
from gradbook.noise import gumbel, gumbel_noise, noise_from_bits, standard_normal, uniform

DRAWS = [standard_normal, uniform, gumbel]
SAMPLE = 100_000
BELOW_ONE = 1 - 2.0**-53
F32, F64 = torch.float32, torch.float64
# As rare as 4.5 standard errors.
RARE = 7e-6


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def seeded():
    """Torch draws from its global generator alone: seed it, and give it back."""
    with torch.random.fork_rng(devices=[]):
        yield lambda: torch.manual_seed(3)


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
    ("draw", "law", "fourth"),
    [
        (standard_normal, "norm", 3),
        (uniform, "uniform", 1 / 80),
        # The excess kurtosis of a Gumbel is 12/5.
        (gumbel, "gumbel_r", 5.4 * (math.pi**2 / 6) ** 2),
    ],
)
def test_the_law_is_right(draw, law, fourth, seed):
    sample = draw(SAMPLE, seed=seed).cpu()
    mean, variance = (float(x) for x in getattr(scipy.stats, law).stats())
    assert abs(float(sample.mean()) - mean) <= 4.5 * math.sqrt(variance / SAMPLE)
    squares = float((sample - mean).square().mean())
    assert abs(squares - variance) <= 4.5 * math.sqrt((fourth - variance**2) / SAMPLE)
    assert scipy.stats.kstest(sample.numpy(), law).pvalue > RARE


@pytest.mark.parametrize(
    ("integers", "n"),
    [
        (torch.int32, [0, -1, 1, 5, -6, 12_345, 2**20 + 1, -(2**30), 2**31 - 1, -(2**31)]),
        (torch.int64, [0, -1, 1, 5, -6, 2**40 + 1, 2**52 + 1, -(2**62), 2**63 - 1, -(2**63)]),
    ],
)
def test_the_noise_of_an_integer_is_its_formula(integers, n):
    bits = torch.tensor(n, dtype=integers)
    ours, width = noise_from_bits(bits), 8 * bits.itemsize
    eps = torch.finfo(ours.dtype).eps
    with mpmath.workdps(40):
        v = [abs(mpmath.mpf(i) + 0.5) / 2 ** (width - 1) for i in n]
        # The nearest numbers of the type, of which the last are 1.
        v = [min(x, 1 - mpmath.mpf(eps) / 4) if x < 1 - mpmath.mpf(eps) / 4 else 1 for x in v]
        exact = [-mpmath.log(-mpmath.log(1 - x if x < 1 else mpmath.mpf(eps) / 4)) for x in v]
    np.testing.assert_allclose(ours, [float(x) for x in exact], rtol=4 * eps)
    assert bits.tolist() == n


def test_where_the_noise_ends():
    ends = noise_from_bits(torch.tensor([0, 2**31 - 1], dtype=torch.int32))
    assert ends.dtype == F32
    assert ends.tolist() == pytest.approx([32 * math.log(2), -math.log(25 * math.log(2))], rel=1e-6)
    ends = noise_from_bits(torch.tensor([0, 2**63 - 1]))
    assert ends.dtype == F64
    assert ends.tolist() == pytest.approx([64 * math.log(2), -math.log(54 * math.log(2))])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_noise_takes_its_bits_from_the_generator_in_order(shape, dtype):
    noise = gumbel_noise(shape, generator(5), dtype)
    assert (noise.shape, noise.dtype) == (shape, dtype)
    words = torch.empty(32, dtype=torch.int64).random_(-(2**63), None, generator=generator(5))
    bits = words.view(torch.int32 if dtype == F32 else torch.int64)
    assert torch.equal(noise.flatten(), noise_from_bits(bits)[: noise.numel()])


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("seed", range(3))
def test_the_law_of_the_noise(dtype, seed):
    noise = gumbel_noise((200_001,), generator(seed), dtype)
    assert scipy.stats.kstest(noise.double().numpy(), "gumbel_r").pvalue > RARE
    # The upper tail alone, where the largest logit is decided.
    excess = noise.double()[noise > 4] - 4
    assert scipy.stats.kstest(excess.exp().reciprocal().numpy(), tail_share).pvalue > RARE


def tail_share(x):
    """Distribution of exp(4 - G) given G > 4."""
    return np.expm1(-x * math.exp(-4)) / np.expm1(-math.exp(-4))


def test_noise_without_a_generator_is_torchs_and_a_generator_leaves_torchs_alone(seeded):
    seeded()
    first = gumbel_noise((3,))
    assert first.dtype == torch.get_default_dtype()
    second = gumbel_noise((3,))
    seeded()
    gumbel_noise((7,), generator(1))
    assert torch.equal(gumbel_noise((3,)), first)
    assert not torch.equal(first, second)


def test_noise_is_drawn_where_its_generator_is_and_moved():
    with torch.device("meta"):
        assert gumbel_noise((3,)).device.type == "meta"
        assert torch.equal(
            gumbel_noise((3,), generator(0), F64, "cpu"),
            gumbel_noise((3,), generator(0), F64, "cpu"),
        )
        assert gumbel_noise((3,), generator(0)).device.type == "meta"
    assert gumbel_noise((3,), device="meta").device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_noise_is_not_drawn_where_it_would_tie(dtype):
    with pytest.raises(ValueError, match="dtype: must be float32 or float64"):
        gumbel_noise((3,), dtype=dtype)


def test_bits_must_be_integers_of_a_known_width():
    with pytest.raises(ValueError, match="bits: must be int32 or int64"):
        noise_from_bits(torch.zeros(3, dtype=torch.int16))
