"""Training of a prior: the schedule, Adam by hand, what it finds, and the measure in bits."""

import math

import pytest
import torch
from torch import nn

from gradbook import vae_training
from gradbook.priors import counting, grids, training
from gradbook.priors.pixelcnn import PixelCNN
from gradbook.priors.transformer import CausalTransformer


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


class Table(nn.Module):
    """Logits of their own for each position, which see nothing."""

    def __init__(self, height, width, count):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(height, width, count, dtype=torch.float64))

    def log_prob(self, codes):
        return grids.log_prob(self.table.expand(len(codes), -1, -1, -1), codes)


def fit(model, codes, steps=5, points=(), measure=lambda model: 0.0, batch=4, rate=0.1, seed=0):
    return training.fit(model, codes, seed, steps, rate, batch, points, measure)


def test_the_rate_rises_then_falls():
    factors = [training.rate_factor(step, 1_100) for step in range(1_100)]
    assert factors[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert factors[100:] == pytest.approx([(1_000 - i) / 1_000 for i in range(1_000)])
    short = [training.rate_factor(step, 20) for step in range(20)]
    assert short[:3] == pytest.approx([0.5, 1, 1])
    assert short[-1] == pytest.approx(1 / 18)
    assert training.rate_factor(0, 1) == 1


def test_steps_are_adams():
    """Two models, one trained by hand with the batches of the seed."""
    codes = integers(10, 2, 2)
    ours, theirs = Table(2, 2, 3), Table(2, 2, 3)
    fit(ours, codes, steps=30, seed=7)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1.0, betas=(0.9, 0.95))
    batches = vae_training.minibatches(10, 4, generator(7))
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 0.1 * min((step + 1) / 3, (30 - step) / 27)
        optimizer.zero_grad()
        (-theirs.log_prob(codes[next(batches)]).mean() / 4).backward()
        optimizer.step()
    assert torch.equal(ours.table, theirs.table)


def test_measures_are_taken_at_their_points():
    codes, seen = integers(10, 2, 2), []

    def measure(model):
        seen.append(model.table.detach().clone())
        return len(seen)

    model = Table(2, 2, 3)
    curve = fit(model, codes, steps=4, points=(3, 0, 4), measure=measure)
    assert curve.values == [1, 2, 3]
    assert curve.seconds > 0
    assert (seen[0] == 0).all()
    assert torch.equal(seen[2], model.table)
    assert not torch.equal(seen[1], seen[2])


def test_a_training_goes_on_after_its_last_point():
    codes = integers(10, 2, 2)
    whole, cut = Table(2, 2, 3), Table(2, 2, 3)
    fit(whole, codes, steps=6)
    curve = fit(cut, codes, steps=6, points=(2,))
    assert len(curve.values) == 1
    assert torch.equal(whole.table, cut.table)


def test_a_table_learns_the_frequencies():
    codes = integers(40, 2, 2).square() % 3
    model = Table(2, 2, 3)
    fit(model, codes, steps=600, batch=40)
    best = counting.table_log_prob(codes, counting.position_frequencies(codes, 3, 0.0))
    least = grids.mean_bits(best, 4)
    assert training.bits_per_code(model, codes) == pytest.approx(least, abs=1e-3)


@pytest.mark.parametrize(
    "model",
    [PixelCNN(2, 3, 4, 8, 2, generator()), CausalTransformer(2, 3, 4, 16, 1, 2, generator())],
    ids=["pixelcnn", "transformer"],
)
def test_networks_learn_what_no_table_can(model):
    """Each code is the one before it plus 0 or 1 modulo 4: 2 bits for the first, 1 for others."""
    steps = torch.randint(2, (2_000, 6), generator=generator(1))
    steps[:, 0] = torch.randint(4, (2_000,), generator=generator(2))
    codes = (steps.cumsum(1) % 4).unflatten(1, (2, 3))
    fit(model, codes[:1_500], steps=300, batch=50, rate=0.01)
    least = 7 / 6
    found = training.bits_per_code(model, codes[1_500:])
    assert least - 0.02 < found < least + 0.1


def test_bits_are_a_mean_over_chunks(monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 3)
    model, codes = Table(2, 2, 3), integers(8, 2, 2)
    with torch.no_grad():
        model.table.normal_(generator=generator())
    whole = -model.log_prob(codes).mean().item() / (4 * math.log(2))
    assert training.bits_per_code(model, codes) == pytest.approx(whole, rel=1e-12)


CODES = integers(6, 2, 2)
BAD = [
    (lambda: fit(Table(2, 2, 3), CODES, steps=0), "steps: must be at least 1"),
    (lambda: fit(Table(2, 2, 3), CODES, points=(6,)), "points: must be from 0 to 5"),
    (lambda: fit(Table(2, 2, 3), CODES, points=(-1,)), "points: must be from 0 to 5"),
    (lambda: fit(Table(2, 2, 3), CODES, batch=7), "batch: must be from 1 to 6"),
    (lambda: fit(Table(2, 2, 3), CODES[:0]), "batch: must be from 1 to 0"),
    (lambda: training.bits_per_code(Table(2, 2, 3), CODES[:0]), "codes: must be at least"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
