"""The experiment on posterior collapse, on images of our own, and its parts."""

import math

import pytest
import torch

from gradbook import normal_vae, vae_terms, vae_training
from gradbook import normal_vae_training as training
from gradbook.experiments import posterior_collapse as experiment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiny(monkeypatch, stand_in):
    """Stands in for Fashion-MNIST, and shortens the training."""
    for name, value in {
        "POINTS": (0, 1, 3),
        "SHORT_POINTS": (2,),
        "HEAD_START": 4,
        "SHORT_HEAD_START": 3,
        "CONTEXT": 5,
        "HIDDEN": 6,
        "SPLIT_IMAGES": 8,
    }.items():
        monkeypatch.setattr(experiment, name, value)
    return stand_in(train=130, test=20)


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def images(n=6):
    return torch.rand(n, experiment.PIXELS, generator=generator(1)).round()


def test_a_tiny_run_has_all_its_parts(tiny):
    found = experiment.run(0)
    assert found["steps"] == [0, 1, 3]
    assert found["context"] < 0
    assert set(found["fits"]) == set(experiment.METHODS)
    for name, fit in found["fits"].items():
        curve = fit["curve"]
        assert fit["seconds"] > 0
        assert [len(column) for column in curve.values()] == [3] * 5, name
        assert all(len(kl) == experiment.LATENTS for kl in curve["kl"])
        for i in range(3):
            terms = curve["reconstruction"][i] - sum(curve["kl"][i])
            assert curve["elbo"][i] == pytest.approx(terms, rel=1e-9)
            assert 0 <= curve["active"][i] <= experiment.LATENTS
            assert set(curve["split"][i]) >= {"information", "marginal_kl", "mean_kl"}
    assert found["short"] == experiment.run_short(0)
    assert all(math.isfinite(value) for value in found["short"].values())


def test_fits_of_one_decoder_start_alike_and_end_apart(tiny):
    fits = experiment.run(0)["fits"]
    # A fresh context says nothing: it starts as the weak decoder.
    for kind, starts in (("strong", 1), ("weak", 1), ("", 2)):
        curves = [fit["curve"]["elbo"] for name, fit in fits.items() if name.startswith(kind)]
        assert len({curve[0] for curve in curves}) == starts
        assert len({curve[-1] for curve in curves}) == len(curves)
    kls = [fit["curve"]["kl"][0] for fit in fits.values()]
    assert all(kl == kls[0] for kl in kls)


def test_pooled_images_have_the_means_of_four_grey_levels(tiny):
    tiny["train"].images[:] = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(14)
    tiny["train"].images[0, :, 14] = 0
    pooled = experiment.pooled("train")
    assert pooled.shape == (130, 196)
    rows = pooled.reshape(-1, 14, 14)
    assert (rows[:, :, :7] == 0).all()
    assert (rows[1:, :, 7:] == 1).all()
    assert 0 < rows[0, :, 7].sum() < 14
    assert torch.equal(experiment.pooled("train", 7), pooled[:7])
    assert set(experiment.pooled("test").unique().tolist()) == {0, 1}


def test_every_method_is_the_loss_that_its_name_says(on_the_cpu):
    batch, context = images(), experiment.untrained(0)
    log_p, kl = torch.tensor([-3.0, -5.0]), torch.tensor([[0.2, 1.0], [0.4, 2.0]])
    half = experiment.WARM_UP // 2
    expected = {
        "strong_beta_1": 4 + 1.8,
        "strong_warm_up": 4 + 0.9,
        "strong_free_bits": 4 + 0.5 + 1.5,
        "strong_beta_0.25": 4 + 0.45,
        "fresh_beta_1": 4 + 1.8,
        "weak_beta_0.25": 4 + 0.45,
        "weak_beta_1": 4 + 1.8,
        "weak_beta_4": 4 + 7.2,
    }
    assert set(expected) == set(experiment.METHODS)
    for name, value in expected.items():
        method = experiment.METHODS[name]
        assert method.objective(log_p, kl, half).item() == pytest.approx(value, rel=1e-6)
        model = method.start(0, context)
        assert hasattr(model, "context") != name.startswith("weak")
        assert model.encoder(batch).mean.shape == (6, experiment.LATENTS)
    late = experiment.METHODS["strong_warm_up"].objective(log_p, kl, 10 * half)
    assert late.item() == pytest.approx(5.8, rel=1e-6)


def test_the_strong_model_copies_the_trained_context_and_the_fresh_one_does_not(on_the_cpu):
    context = experiment.trained(images(200), 0, 5)
    strong, fresh = experiment.strong(0, context), experiment.fresh(0, context)
    weak = experiment.weak(0, context)
    assert torch.equal(strong.context.direct, context.direct)
    assert strong.context.direct is not context.direct
    assert torch.equal(fresh.context.first, experiment.untrained(0).first)
    assert (fresh.context.direct == 0).all()
    for model in (strong, fresh):
        for name, parameter in weak.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name))


def test_the_first_posteriors_are_close_to_the_prior(on_the_cpu):
    model = experiment.weak(0, experiment.untrained(0))
    plain = training.started(8, 0, 196, 128)
    torch.testing.assert_close(model.encoder.mean.weight, 0.01 * plain.encoder.mean.weight)
    assert torch.equal(model.encoder.hidden.weight, plain.encoder.hidden.weight)
    assert normal_vae.kl(model.encoder(images())).sum(1).max() < 1e-2


def test_the_head_start_trains_the_context_alone(on_the_cpu):
    # All pixels of an image are equal; independent ones could not do better than at the start.
    batch = images(300)[:, :1].repeat(1, 196)
    log_p = [
        normal_vae.log_likelihood(experiment.trained(batch, 0, steps)(batch), batch).mean().item()
        for steps in (0, 100)
    ]
    assert log_p[0] == pytest.approx(-196 * math.log(2), rel=1e-5)
    assert log_p[1] > -0.5 * 196 * math.log(2)


def test_the_terms_use_the_likelihood_of_the_decoder(on_the_cpu):
    context, batch = experiment.trained(images(200), 0, 20), images()
    strong, weak = experiment.strong(0, context), experiment.weak(0, context)
    noise = training.normals(6, 8, generator=generator(4))
    for model, own in ((strong, strong.log_likelihood), (weak, normal_vae.log_likelihood)):
        found = experiment.terms(model, batch, generator(4))
        elbo = normal_vae.elbo(model, batch, noise, own)
        torch.testing.assert_close(found.log_likelihood - found.kl.sum(1), elbo)


def test_progress_measures_the_true_bound_and_counts_active_units(on_the_cpu):
    model, batch = experiment.weak(0, experiment.untrained(0)), images(12)
    with torch.no_grad():
        model.encoder.mean.weight[:3] *= 500
    found = experiment.progress(model, batch, 0)
    means = training.posteriors(model, batch).mean
    assert found["active"] == vae_terms.active_units(means).sum().item() == 3
    expected = training.bound(model, batch, 0, experiment.terms)
    assert (found["elbo"], found["kl"]) == (expected.elbo, expected.kl)
    assert found["split"]["information"] <= math.log(12)


def test_the_data_are_those_of_the_other_experiments():
    assert experiment.data_digest() == vae_training.data_digest()
