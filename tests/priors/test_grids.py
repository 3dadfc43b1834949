"""What priors share: log-probabilities, draws from logits, lengths in bits, and influence."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise
from gradbook.priors import grids


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


@given(
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    count=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_log_prob_is_torchs(height, width, count, seed):
    logits = 3 * normal(5, height, width, count, seed=seed)
    codes = integers(5, height, width, count=count, seed=seed)
    exact = torch.distributions.Categorical(logits=logits).log_prob(codes).sum((1, 2))
    torch.testing.assert_close(grids.log_prob(logits, codes), exact, rtol=1e-12, atol=1e-12)


def test_log_prob_has_the_gradient_of_the_softmax():
    logits, codes = normal(2, 2, 3, 4).requires_grad_(), integers(2, 2, 3, count=4)
    grids.log_prob(logits, codes).sum().backward()
    one_hot = torch.nn.functional.one_hot(codes, 4)
    torch.testing.assert_close(logits.grad, one_hot - logits.detach().softmax(-1))


def test_noise_is_of_the_seed_and_fits_the_model(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    model = SimpleNamespace(height=2, width=3, codes=4)
    found = grids.grid_noise(model, 5, 7)
    assert torch.equal(found, gumbel_noise((5, 2, 3, 4), generator(7), torch.float32, "cpu"))


def chain(table):
    """Logits of a code given the one before it in reading order; row K of the table is the start."""

    def logits(codes):
        flat = codes.flatten(1)
        start = torch.full_like(flat[:, :1], len(table) - 1)
        return table[torch.cat([start, flat[:, :-1]], 1)].unflatten(1, codes.shape[1:])

    return logits


def test_sample_draws_a_chain_in_reading_order():
    table, g = normal(4, 3), noise(50, 2, 3, 3)
    drawn = grids.sample(chain(table), g).flatten(1)
    previous = torch.full((50,), 3)
    for t in range(6):
        previous = gumbel_max(table[previous], g.flatten(1, 2)[:, t])
        assert torch.equal(drawn[:, t], previous)


def test_sampled_grids_have_the_law(require_law):
    logits = chain(normal(4, 3))
    require_law(
        lambda count, noise: grids.sample(logits, noise),
        lambda codes: grids.log_prob(logits(codes), codes),
        *(2, 2, 3),
    )


def test_bits_are_those_of_a_uniform_law():
    log_probs = torch.full((4,), -6 * math.log(8), dtype=torch.float32)
    assert grids.mean_bits(log_probs, 6) == pytest.approx(3, rel=1e-6)
    assert grids.mean_bits(torch.tensor([-1.0, -3.0]), 1) == pytest.approx(2 / math.log(2))


def test_influence_finds_what_a_position_reads():
    """The logits of position s are code s - 2 times its own weight, for s of 6."""
    weight = torch.arange(1.0, 7.0).double()

    def logits(codes):
        shifted = torch.nn.functional.pad(codes.flatten(1).double(), (2, -2)) * weight
        return torch.stack([shifted, torch.zeros_like(shifted)], -1).unflatten(1, codes.shape[1:])

    found = grids.influence(logits, torch.zeros(2, 3, dtype=torch.int64), 5)
    assert torch.equal(found, torch.diag(weight[2:], 2))
    # The last code becomes the first.
    found = grids.influence(logits, torch.full((2, 3), 4), 5)
    assert torch.equal(found, 4 * torch.diag(weight[2:], 2))


def test_an_empty_batch_gives_an_empty_result():
    none = torch.empty(0, 2, 3, 4).double()
    assert grids.log_prob(none, torch.empty(0, 2, 3, dtype=torch.int64)).shape == (0,)
    assert grids.sample(chain(normal(5, 4)), none).shape == (0, 2, 3)


LOGITS, CODES = normal(2, 2, 3, 3), integers(2, 2, 3)
BAD = [
    (lambda: grids.log_prob(LOGITS[0], CODES), "logits: must be \\[B"),
    (lambda: grids.log_prob(LOGITS / 0, CODES), "logits: must be finite"),
    (lambda: grids.log_prob(LOGITS, CODES[:1]), "codes: must be 2 grids"),
    (lambda: grids.log_prob(LOGITS, CODES[:, :1]), "codes: must be \\[B, 2, 3\\]"),
    (lambda: grids.log_prob(LOGITS, CODES[0]), "codes: must be \\[B, 2, 3\\]"),
    (lambda: grids.log_prob(LOGITS, CODES.double()), "codes: must be int64"),
    (lambda: grids.log_prob(LOGITS, CODES.int()), "codes: must be int64"),
    (lambda: grids.log_prob(LOGITS, CODES + 1), "codes: must be from 0 to 2"),
    (lambda: grids.log_prob(LOGITS, CODES - 1), "codes: must be from 0 to 2"),
    (lambda: grids.mean_bits(torch.empty(0), 3), "log_probs: "),
    (lambda: grids.mean_bits(torch.tensor(1.0), 3), "log_probs: "),
    (lambda: grids.mean_bits(torch.ones(2), 0), "positions: must be at least 1"),
    (lambda: grids.influence(lambda codes: LOGITS, CODES[0], 1), "count: must be at least 2"),
    (lambda: grids.influence(lambda codes: LOGITS, CODES, 3), "codes: must be \\[h, w\\]"),
    (lambda: grids.influence(lambda codes: LOGITS, CODES[0] + 3, 3), "codes: must be from 0"),
    (lambda: grids.require_noise(noise(2, 2, 3, 3), 2, 2, 3, 4), "noise: must be \\(2, 2, 3, 4\\)"),
    (lambda: grids.require_noise(noise(2, 2, 3, 3), 3, 2, 3, 3), "noise: must be \\(3, 2, 3, 3\\)"),
    (lambda: grids.require_noise(noise(2, 2) / 0, 2, 2), "noise: must be finite"),
    (lambda: grids.require_sizes(here=1, there=0), "there: must be at least 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_the_first_and_the_last_code_are_legal():
    grids.require_codes(torch.tensor([[[0, 2]]]), 1, 2, 3)
    grids.require_sizes(least=1)
    grids.require_noise(noise(2, 1, 3, 4), 2, 1, 3, 4)
