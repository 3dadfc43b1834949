"""The experiment on the breast-cancer posterior, and the yardstick in its record."""

import math

import pytest
import torch

from gradbook import logistic, normals, records, variational
from gradbook.experiments import breast_cancer as experiment


@pytest.fixture(scope="module")
def yardstick():
    return records.load("breast_cancer")["reference"]["results"]


def column(results, *keys):
    for key in keys:
        results = results[key]
    return torch.tensor(results, dtype=torch.float64)


def test_every_method_starts_at_the_prior():
    for method in experiment.METHODS.values():
        q = method.family(experiment.initial(method))
        assert torch.equal(q.mean.cpu(), torch.zeros(31).double())
        assert torch.equal(q.factor.cpu(), torch.eye(31).double())


def test_variances_are_those_of_gradients_computed_one_by_one():
    theta = experiment.initial(experiment.METHODS["score"])
    found = experiment.variances(theta, seed=5, replicates=6)
    batches = list(experiment.noises(2_005, 6, experiment.DRAWS))
    target = experiment.posterior()
    for name, surrogate in (
        ("score", variational.score),
        ("leave_one_out", variational.score_leave_one_out),
        ("pathwise", variational.elbo),
    ):
        gradient = variational.gradient_of(surrogate, target, normals.mean_field)
        rows = torch.stack([torch.cat(gradient(theta, noise)) for noise in batches])
        assert found[name] == pytest.approx(rows.var(0).sum().item(), rel=1e-9)


def test_one_seed_gives_all_methods_the_same_noise():
    first, again, other = (next(experiment.noises(seed, 1, 4)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nuts_and_importance_sampling_agree(yardstick):
    """Two independent estimates of 31 means: within 4.5 of their combined standard errors."""
    gap = column(yardstick, "nuts", "mean") - column(yardstick, "importance", "mean")
    stderr = torch.hypot(
        column(yardstick, "nuts", "mean_stderr"), column(yardstick, "importance", "mean_stderr")
    )
    assert (gap.abs() <= 4.5 * stderr).all()
    ratio = column(yardstick, "importance", "sd") / column(yardstick, "nuts", "sd")
    assert ((ratio - 1).abs() <= 0.03).all()


def test_the_chains_of_the_yardstick_have_converged(yardstick):
    assert yardstick["nuts"]["rhat_max"] < 1.01
    assert column(yardstick, "nuts", "ess_mean").min() > 4_000
    assert column(yardstick, "nuts", "ess_square").min() > 4_000
    assert yardstick["importance"]["ess"] > 20_000


def test_the_recorded_laplace_is_computed_again(yardstick):
    table = experiment.data.breast_cancer()
    mode, factor = logistic.laplace(logistic.with_intercept(table.features), table.labels)
    assert yardstick["names"] == list(experiment.names())
    torch.testing.assert_close(column(yardstick, "laplace", "mean"), mode, rtol=1e-5, atol=1e-6)
    sd = (factor @ factor.T).diagonal().sqrt()
    torch.testing.assert_close(column(yardstick, "laplace", "sd"), sd, rtol=1e-5, atol=1e-6)


def test_no_elbo_exceeds_the_evidence(yardstick):
    evidence = yardstick["importance"]["log_evidence"]
    record = records.load("breast_cancer")
    for name in experiment.METHODS:
        elbos = records.across_seeds(record, "fits", name, "elbo")
        stderrs = records.across_seeds(record, "fits", name, "stderr")
        slack = (stderrs.square() + yardstick["importance"]["log_evidence_stderr"] ** 2).sqrt()
        assert (elbos - 4.5 * slack <= evidence).all()


def test_a_short_seed_that_is_not_recorded_falls_in_the_record():
    record = records.load("breast_cancer")
    live = experiment.run_short(len(experiment.SEEDS))
    for name, value in live.items():
        mean, stderr = records.spread(records.across_seeds(record, "short", name))
        assert abs(value - mean) <= 4.5 * stderr
        assert math.isfinite(value)


def test_deviations_are_the_root_of_the_covariances_diagonal():
    generator = torch.Generator().manual_seed(5)
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64).tril()
    exact = (factor @ factor.T).diagonal().sqrt()
    torch.testing.assert_close(experiment._deviations(factor), exact, rtol=1e-12, atol=0)


def test_noise_is_drawn_on_the_cpu_whatever_the_default_device(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    expected = next(experiment.noises(3, 1, 4))
    with torch.device("meta"):
        assert torch.equal(next(experiment.noises(3, 1, 4)), expected)
