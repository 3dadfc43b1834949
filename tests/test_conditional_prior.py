"""Prefixes, priors of grids given conditions, and codes corrupted on purpose."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.conditional_prior import (
    ClassPrefix,
    CodePrefix,
    ConditionalPrior,
    CoordinatePrefix,
    corrupted_log_prob,
    pkeep_corrupted,
)
from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise
from gradbook.priors import CausalTransformer
from gradbook.sampling import sample_grids, top_k


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


def uniform(*shape, seed=4):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


def stirred(model, std=0.5):
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator(1))
    return model


def transformer(prefix):
    return CausalTransformer(2, 2, 3, 8, 2, 2, generator(), prefix)


def by_class():
    return stirred(ConditionalPrior(ClassPrefix(4, 8, generator(2)), transformer(1)))


def by_codes():
    return stirred(ConditionalPrior(CodePrefix(5, 6, 8, generator(2)), transformer(6)))


def by_place():
    return stirred(ConditionalPrior(CoordinatePrefix(8, generator(2)), transformer(1)))


CASES = [
    (by_class, lambda n: integers(n, count=4)),
    (by_codes, lambda n: integers(n, 2, 3, count=5)),
    (by_place, lambda n: uniform(n, 2, seed=8)),
]
cases = pytest.mark.parametrize(("build", "conditions"), CASES)


def every_grid():
    rows = list(itertools.product(range(3), repeat=4))
    return torch.tensor(rows).unflatten(1, (2, 2))


def test_a_class_gets_its_vector():
    prefix, labels = ClassPrefix(4, 8, generator()), torch.tensor([2, 0, 2])
    assert torch.equal(prefix(labels), prefix.table[[2, 0, 2]].unflatten(0, (3, 1)))
    assert prefix.table.dtype == torch.float32
    assert torch.equal(prefix.table, ClassPrefix(4, 8, generator()).table)


def test_codes_get_their_vectors_row_by_row():
    prefix, codes = CodePrefix(5, 6, 8, generator()), integers(3, 2, 3, count=5)
    found = prefix(codes)
    assert found.shape == (3, 6, 8)
    for b, i, j in itertools.product(range(3), range(2), range(3)):
        assert torch.equal(found[b, 3 * i + j], prefix.table[codes[b, i, j]])


@cases
def test_it_is_the_transformer_with_the_prefix_of_the_condition(build, conditions):
    prior, condition, codes = build(), conditions(7), integers(7, 2, 2)
    vectors = prior.prefix(condition)
    assert vectors.shape == (7, prior.prefix.vectors, 8)
    assert torch.equal(prior.logits(codes, condition), prior.transformer.logits(codes, vectors))
    assert torch.equal(prior.log_prob(codes, condition), prior.transformer.log_prob(codes, vectors))
    assert (prior.height, prior.width, prior.codes) == (2, 2, 3)


@cases
def test_every_condition_gives_a_law(build, conditions):
    prior, every = build(), every_grid()
    laws = [
        prior.log_prob(every, condition.expand(len(every), *condition.shape)).detach()
        for condition in conditions(2)
    ]
    for law in laws:
        assert law.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert (laws[0] - laws[1]).abs().max() > 0.01


@cases
def test_samples_are_what_the_noise_picks_given_the_condition(build, conditions):
    prior, condition, g = build(), conditions(40), noise(40, 2, 2, 3)
    drawn = prior.sample(40, g, condition)
    assert torch.equal(drawn, gumbel_max(prior.logits(drawn, condition).detach(), g))
    filter = partial(top_k, k=2)
    drawn = sample_grids(prior, 40, g, filter, condition)
    assert torch.equal(drawn, gumbel_max(filter(prior.logits(drawn, condition).detach()), g))


@cases
def test_every_weight_learns(build, conditions):
    prior = build()
    prior.log_prob(integers(20, 2, 2), conditions(20)).sum().backward()
    for name, parameter in prior.named_parameters():
        assert (parameter.grad != 0).any(), name


@cases
def test_an_empty_batch_gives_an_empty_result(build, conditions):
    prior, none = build(), torch.empty(0, 2, 2, dtype=torch.int64)
    condition = conditions(1)[:0]
    assert prior.logits(none, condition).shape == (0, 2, 2, 3)
    assert prior.log_prob(none, condition).shape == (0,)
    assert prior.sample(0, torch.empty(0, 2, 2, 3), condition).shape == (0, 2, 2)
    empty = torch.empty(0, 2, 2)
    assert pkeep_corrupted(none, 0.5, 3, empty).shape == (0, 2, 2)
    assert corrupted_log_prob(prior, none, condition, 0.5, empty).shape == (0,)


def test_a_single_class_says_nothing():
    prior = stirred(ConditionalPrior(ClassPrefix(1, 8, generator()), transformer(1)))
    log_probs = prior.log_prob(every_grid(), torch.zeros(81, dtype=torch.int64))
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_corruption_keeps_and_replaces_the_exact_shares():
    """Noise at the middles of 64 equal parts: half is kept, the rest falls evenly on 4 codes."""
    draws = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    for code in range(4):
        codes = torch.full((1, 8, 8), code)
        found = pkeep_corrupted(codes, 0.5, 4, draws.view(1, 8, 8)).flatten()
        assert (found[:32] == code).all()
        assert found[32:].bincount(minlength=4).tolist() == [8] * 4
    drawn = pkeep_corrupted(torch.zeros(1, 8, 8, dtype=torch.int64), 0, 4, draws.view(1, 8, 8))
    assert torch.equal(drawn.flatten(), torch.arange(4).repeat_interleave(16))


@given(st.floats(0, 1), st.integers(1, 9), st.integers(0, 2**20))
def test_corrupted_codes_are_codes_and_kept_ones_are_as_they_were(keep, count, seed):
    codes, draws = integers(3, 4, 4, count=count, seed=seed), uniform(3, 4, 4, seed=seed)
    for u in (draws, draws.float().clamp(max=1 - 2**-24), draws * 0):
        found = pkeep_corrupted(codes, keep, count, u)
        assert found.dtype == torch.int64
        assert ((found >= 0) & (found < count)).all()
        assert torch.equal(found[u < keep], codes[u < keep])
    assert torch.equal(pkeep_corrupted(codes, 1, count, draws), codes)


def test_a_code_stays_with_the_probability_that_is_said():
    codes = integers(400, 10, 10, count=5)
    same = pkeep_corrupted(codes, 0.7, 5, uniform(400, 10, 10)) == codes
    share = 0.7 + 0.3 / 5
    error = (share * (1 - share) / codes.numel()) ** 0.5
    assert abs(same.double().mean().item() - share) < 4.5 * error


@cases
def test_inputs_are_corrupted_and_targets_are_not(build, conditions):
    prior, condition, codes = build(), conditions(6), integers(6, 2, 2)
    draws = uniform(6, 2, 2)
    inputs = pkeep_corrupted(codes, 0.4, 3, draws)
    assert (inputs != codes).any()
    # Code by code: the laws come from the inputs and the condition, the codes are the clean ones.
    laws = prior.logits(inputs, condition).log_softmax(-1)
    expected = [
        sum(laws[b, i, j, codes[b, i, j]] for i in range(2) for j in range(2)) for b in range(6)
    ]
    found = corrupted_log_prob(prior, codes, condition, 0.4, draws)
    torch.testing.assert_close(found, torch.stack(expected))
    assert not torch.allclose(found, prior.log_prob(inputs, condition))
    clean = corrupted_log_prob(prior, codes, condition, 1, draws)
    assert torch.equal(clean, prior.log_prob(codes, condition))


def test_the_first_code_is_told_only_the_condition():
    """Whatever the inputs are, its law stays; those of later codes change."""
    prior, codes, labels = by_class(), integers(50, 2, 2), integers(50, count=4)
    corrupted = pkeep_corrupted(codes, 0, 3, uniform(50, 2, 2))
    change = (prior.logits(corrupted, labels) - prior.logits(codes, labels)).abs().amax((0, 3))
    assert change[0, 0] == 0
    assert (change.flatten()[1:] > 0).all()


CODES, U = integers(2, 2, 2), torch.full((2, 2, 2), 0.5)
LABELS = torch.zeros(2, dtype=torch.int64)
BAD = [
    (lambda: ClassPrefix(0, 8, generator()), "classes: must be at least 1"),
    (lambda: ClassPrefix(2, 0, generator()), "dim: must be at least 1"),
    (lambda: CodePrefix(0, 6, 8, generator()), "codes: must be at least 1"),
    (lambda: CodePrefix(5, 0, 8, generator()), "vectors: must be at least 1"),
    (lambda: CodePrefix(5, 6, 0, generator()), "dim: must be at least 1"),
    (
        lambda: ConditionalPrior(ClassPrefix(4, 8, generator()), transformer(2)),
        "prefix: must give 2 vectors, gives 1",
    ),
    (
        lambda: ConditionalPrior(ClassPrefix(4, 6, generator()), transformer(1)).log_prob(
            CODES, LABELS
        ),
        "prefix: must be \\(2, 1, 8\\)",
    ),
    (lambda: by_class().log_prob(CODES, LABELS[:1]), "prefix: must be"),
    (lambda: by_class().log_prob(CODES, LABELS + 4), "condition: must be from 0 to 3"),
    (lambda: by_class().log_prob(CODES, LABELS - 1), "condition: must be from 0 to 3"),
    (lambda: by_class().log_prob(CODES, LABELS.double()), "condition: must be int64 \\[B\\]"),
    (lambda: by_class().log_prob(CODES, CODES), "condition: must be int64 \\[B\\]"),
    (lambda: by_codes().log_prob(CODES, LABELS), "condition: must be int64 \\[B, h', w'\\]"),
    (lambda: by_codes().log_prob(CODES, CODES), "condition: must have 6 codes a grid"),
    (
        lambda: by_codes().log_prob(CODES, torch.full((2, 2, 3), 5)),
        "condition: must be from 0 to 4",
    ),
    (lambda: by_class().log_prob(CODES + 3, LABELS), "codes: must be from 0 to 2"),
    (lambda: by_class().sample(3, noise(2, 2, 2, 3), LABELS), "noise: must be \\(3, 2, 2, 3\\)"),
    (lambda: pkeep_corrupted(CODES, -0.1, 3, U), "keep: must be from 0 to 1"),
    (lambda: pkeep_corrupted(CODES, 1.1, 3, U), "keep: must be from 0 to 1"),
    (lambda: pkeep_corrupted(CODES, float("nan"), 3, U), "keep: must be from 0 to 1"),
    (lambda: pkeep_corrupted(CODES, 0.5, 3, U[:1]), "noise: must be floating \\(2, 2, 2\\)"),
    (lambda: pkeep_corrupted(CODES, 0.5, 3, CODES * 0), "noise: must be floating"),
    (lambda: pkeep_corrupted(CODES, 0.5, 3, 2 * U), "noise: must be from 0 to below 1"),
    (lambda: pkeep_corrupted(CODES, 0.5, 3, -U), "noise: must be from 0 to below 1"),
    (lambda: pkeep_corrupted(CODES, 0.5, 3, U / 0 * 0), "noise: must be from 0 to below 1"),
    (lambda: pkeep_corrupted(CODES + 1, 0.5, 3, U), "codes: must be from 0 to 2"),
    (lambda: pkeep_corrupted(CODES.int(), 0.5, 3, U), "codes: must be int64"),
    (lambda: pkeep_corrupted(CODES[0], 0.5, 3, U[0]), "codes: must be \\[B, h, w\\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
