"""A prior that can only know its grids from their conditions, and one step by hand."""

import math
from functools import partial

import pytest
import torch

from gradbook import vae_training
from gradbook.conditional_prior import ClassPrefix, ConditionalPrior, corrupted_log_prob
from gradbook.conditional_prior_training import bits_per_code, fit, possible_share
from gradbook.priors import CausalTransformer
from gradbook.priors.training import rate_factor
from gradbook.sampling import top_k


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def built(classes=4, seed=0):
    transformer = CausalTransformer(2, 2, 4, 16, 1, 2, generator(seed), 1)
    return ConditionalPrior(ClassPrefix(classes, 16, generator(seed + 1)), transformer)


def grids_of(labels):
    """Grids that hold nothing but their class."""
    return labels[:, None, None].expand(-1, 2, 2).clone()


LABELS = torch.arange(400) % 4


def test_a_condition_that_tells_everything_saves_all_bits():
    codes = grids_of(LABELS)
    told, none = built(), built(1)
    fit(told, codes, LABELS, 0, 100, 3e-2, 32)
    fit(none, codes, LABELS * 0, 0, 100, 3e-2, 32)
    assert bits_per_code(told, codes, LABELS) < 0.05
    # Two bits for the first code of four, then nothing is new.
    assert 0.5 <= bits_per_code(none, codes, LABELS * 0) < 0.55
    # The next class is never right.
    assert bits_per_code(told, codes, (LABELS + 1) % 4) > 2


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_is_adam_on_the_corrupted_log_probability(steps):
    codes = torch.randint(4, (9, 2, 2), generator=generator(5))
    labels, model, other = LABELS[:9], built(), built()
    fit(model, codes, labels, 3, steps, 1e-2, 6, 0.5)
    batches, draws = vae_training.minibatches(9, 6, generator(3)), generator(20_003)
    optimizer = torch.optim.Adam(other.parameters(), lr=1.0, betas=(0.9, 0.95))
    for step in range(steps):
        rows = next(batches)
        noise = torch.rand((6, 2, 2), generator=draws, dtype=torch.float32)
        # Of four steps the first has the whole rate; the others come down to a third of it.
        optimizer.param_groups[0]["lr"] = 1e-2 * rate_factor(step, steps)
        optimizer.zero_grad()
        loss = -corrupted_log_prob(other, codes[rows], labels[rows], 0.5, noise).mean() / 4
        loss.backward()
        optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_training_depends_on_its_seed_and_on_what_is_kept_and_on_nothing_else():
    codes = torch.randint(4, (20, 2, 2), generator=generator(5))
    weights = []
    for seed, keep in ((0, 1.0), (0, 1.0), (1, 1.0), (0, 0.5)):
        torch.rand(1)
        model = built()
        fit(model, codes, LABELS[:20], seed, 3, 1e-2, 5, keep)
        weights.append(model.transformer.head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    fit(built(), grids_of(LABELS), LABELS, 0, 2, 1e-2, 8, 0.9)
    assert torch.equal(torch.get_rng_state(), state)


def test_bits_are_means_over_all_grids_whatever_the_chunks(monkeypatch):
    model, codes = built(), grids_of(LABELS)
    expected = -model.log_prob(codes, LABELS).double().mean().item() / (4 * math.log(2))
    assert bits_per_code(model, codes, LABELS) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr("gradbook.conditional_prior_training.CHUNK", 7)
    assert bits_per_code(model, codes, LABELS) == pytest.approx(expected, rel=1e-6)


def test_possible_grids_are_those_of_the_best_codes():
    model = built()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator(7))
    codes = torch.randint(4, (400, 2, 2), generator=generator(5))
    logits = model.logits(codes, LABELS).detach()
    for k in (1, 2, 3):
        own = logits.gather(-1, codes[..., None])
        ranks = (logits > own).sum(-1)
        expected = (ranks < k).flatten(1).all(1).double().mean().item()
        assert possible_share(model, codes, LABELS, partial(top_k, k=k)) == expected
    assert 0 < expected < 1
    assert possible_share(model, codes, LABELS, lambda logits: logits) == 1


CODES = grids_of(LABELS)
BAD = [
    (lambda: fit(built(), CODES, LABELS[:3], 0, 1, 1e-2, 8), "condition: must be 400"),
    (lambda: fit(built(), CODES, LABELS, 0, 1, 1e-2, 401), "size: must be from 1 to 400"),
    (lambda: fit(built(), CODES, LABELS, 0, 1, 1e-2, 8, 2), "keep: must be from 0 to 1"),
    (lambda: bits_per_code(built(), CODES[:2], LABELS), "condition: must be 2"),
    (lambda: bits_per_code(built(), CODES[:0], LABELS[:0]), "codes: must be at least one grid"),
    (lambda: possible_share(built(), CODES[:2], LABELS, abs), "condition: must be 2"),
    (lambda: possible_share(built(), CODES[:0], LABELS[:0], abs), "codes: must be at least one"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
