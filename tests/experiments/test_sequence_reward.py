"""The experiment on strings paid for their trigrams, and its record."""

import math

import pytest
import torch
from torch.func import grad

from gradbook import comparisons, data, device, records, sequence_gradients, sequences
from gradbook.experiments import sequence_reward as experiment


@pytest.fixture(scope="module")
def record():
    return records.load("sequence_reward")


@pytest.fixture(scope="module")
def reward():
    """A table of ones and zeros that needs no data."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(27, 27, 27, generator=generator, device="cpu") < experiment.SHARE
    return table.double().to(device())


def column(record, *keys):
    return records.across_seeds(record, *keys)


def test_one_seed_gives_all_methods_the_same_start_and_noise():
    first, again, other = (next(experiment.noises(seed, 1)) for seed in (3, 3, 4))
    assert first.shape == (16, 12, 27)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    starts = [experiment.initial(seed) for seed in (3, 3, 4)]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not torch.equal(starts[0]["output"], starts[2]["output"])


def test_noise_and_start_are_drawn_on_the_cpu_whatever_the_default_device(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    expected = next(experiment.noises(3, 1)), experiment.initial(3)["before"]
    with torch.device("meta"):
        assert torch.equal(next(experiment.noises(3, 1)), expected[0])
        assert torch.equal(experiment.initial(3)["before"], expected[1])


def test_a_short_run_is_the_beginning_of_a_long_one(reward):
    short = experiment.climbed("leave_one_out", 0, reward, 3, {3})[3]
    long = experiment.climbed("leave_one_out", 0, reward, 5, {3, 5})[3]
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_gradients_are_measured_one_by_one(reward):
    theta = experiment.initial(1)
    batches = list(experiment.noises(5, 4))
    names = (*experiment.UNBIASED, *experiment.BIASED)
    found = experiment.measure(names, theta, reward, torch.stack(batches))
    exact = joined(grad(sequence_gradients.exact)(theta, reward, experiment.LENGTH))
    settled = sequence_gradients.exact(theta, reward, experiment.LENGTH).item()
    assert set(found) == set(experiment.METHODS) - {"exact", "exact_with_entropy", "with_entropy"}
    for name in names:
        baseline = settled if name == "moving_average" else 0.0
        gradient = grad(experiment.METHODS[name].surrogate)
        rows = [joined(gradient(theta, reward, noise, baseline)) for noise in batches]
        expected = comparisons.compare(torch.stack(rows), exact)._asdict()
        assert found[name] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def joined(theta):
    return torch.cat([part.flatten() for part in theta.values()])


def test_every_method_takes_its_own_gradient(reward):
    """Two steps by each of the eleven end at eleven different places."""
    ends = [experiment.climbed(name, 0, reward, 2, {2})[2] for name in experiment.METHODS]
    values = {sequence_gradients.exact(theta, reward, 12).item() for theta in ends}
    # With decay the baseline is 0 for the first step only: the second tells it from REINFORCE.
    assert len(values) == len(experiment.METHODS) == 11


def test_unbiased_gradients_were_measured_without_bias(record):
    """Five seeds, two places, four estimators: the mean slope over the seeds is 1."""
    for place in ("start", "midway"):
        for name in experiment.UNBIASED:
            way = ("gradients", place, name)
            slopes, stderrs = column(record, *way, "slope"), column(record, *way, "slope_stderr")
            stderr = stderrs.square().sum().sqrt() / len(stderrs)
            assert abs(slopes.mean() - 1) <= 4.5 * stderr
            # 4299 coordinates: a normal as far out as 6 comes once in 100 000 such measurements.
            assert column(record, *way, "z_max").max() <= 6


def test_relaxed_gradients_were_measured_with_bias_and_less_variance(record):
    for place in ("start", "midway"):
        best = column(record, "gradients", place, "reward_to_go", "variance")
        for name in ("gumbel_softmax_1", "gumbel_softmax_0.5", "straight_through_1"):
            assert column(record, "gradients", place, name, "z_max").min() > 10
            assert (column(record, "gradients", place, name, "variance") < 0.5 * best).all()


def test_each_refinement_of_the_score_function_lowers_the_variance(record):
    for place in ("start", "midway"):
        plain, one_out, to_go = (
            column(record, "gradients", place, name, "variance")
            for name in ("reinforce", "leave_one_out", "reward_to_go")
        )
        assert (to_go < one_out).all()
        assert (one_out < plain).all()


def test_curves_are_within_their_bounds(record):
    best = record["reference"]["results"]["best"]
    bound = best["objective"] + 1e-5  # numbers are rounded to six digits
    for name in experiment.METHODS:
        reward = column(record, "fits", name, "reward")
        entropy = column(record, "fits", name, "entropy")
        assert (reward >= 0).all()
        assert (reward <= 1).all()
        assert (entropy >= 0).all()
        assert (entropy <= experiment.LENGTH * math.log(27)).all()
        assert (reward + best["weight"] * entropy <= bound).all()


def test_all_methods_of_a_seed_start_at_one_place(record):
    starts = [column(record, "fits", name, "reward")[:, 0] for name in experiment.METHODS]
    assert all(torch.equal(start, starts[0]) for start in starts)


def test_reward_alone_collapses_and_the_bonus_prevents_it(record):
    text = record["reference"]["results"]["text"]
    for name in experiment.METHODS:
        reward = column(record, "fits", name, "reward")[:, -1]
        entropy = column(record, "fits", name, "entropy")[:, -1]
        assert (reward > 0.9).all()
        if name.endswith("entropy"):
            assert (entropy > 0.9 * text["entropy"]).all()
        else:
            assert (entropy < 0.5 * text["entropy"]).all()


def test_a_short_seed_that_is_not_recorded_falls_in_the_record(record):
    try:
        live = experiment.run_short(len(experiment.SEEDS))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for name, value in live.items():
        mean, stderr = records.spread(column(record, "short", name))
        assert abs(value - mean) <= 4.5 * stderr


def test_the_recorded_yardsticks_are_computed_again(record):
    try:
        found = experiment.reference()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    recorded = record["reference"]["results"]
    assert found["threshold"] == recorded["threshold"]
    assert found["frequent"] == recorded["frequent"]
    for part in ("text", "best"):
        assert found[part] == pytest.approx(recorded[part], rel=5e-6)
    assert experiment.data_digest() == data.SHAKESPEARE_SHA256


def test_the_table_marks_a_tenth(record):
    try:
        table = experiment.table()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert abs(table.mean().item() - experiment.SHARE) < 1e-3
    tokens = sequences.encode("the and ing")
    assert sequences.trigram_rewards(table.cpu(), tokens).mean() > 0.8
