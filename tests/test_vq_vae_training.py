"""Trainings of an autoencoder with discrete codes: the start, the loop, and what becomes of it."""

import pytest
import torch
from torch import nn

from gradbook import vae_training
from gradbook import vq_vae_training as training
from gradbook.quantizer_variants import GumbelCodebook, Identity, normal_codebook
from gradbook.quantizers import LossCodebook, RestartedCodebook

K, D = 7, 3


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=40, channels=1, seed=1):
    return torch.rand(n, channels, 8, 8, generator=generator(seed), dtype=torch.float32)


def restarted(vectors, generator):
    return RestartedCodebook(normal_codebook(K, vectors.shape[1], generator))


def by_loss(vectors, generator):
    return LossCodebook(normal_codebook(K, vectors.shape[1], generator))


def gumbel(vectors, generator):
    return GumbelCodebook(vectors.shape[1], K, 1.0, 0.0, generator)


def plain(vectors, generator):
    return Identity()


def model(make=restarted, seed=0, channels=1):
    return training.started(make, images(channels=channels), seed, width=4, dim=D, blocks=1)


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_grey_images_have_a_channel(stand_in):
    sets = stand_in(train=5, test=3)
    found = training.grey("train")
    assert (found.shape, found.dtype) == ((5, 1, 28, 28), torch.float32)
    assert torch.equal(found[:, 0] * 255, sets["train"].images.float())
    assert torch.equal(training.grey("test", 2), training.grey("test")[:2])


@pytest.mark.parametrize(("channels", "halvings"), [(1, 2), (3, 2), (3, 1), (1, 3)])
def test_the_first_vectors_are_standardized(channels, halvings):
    x = images(n=200, channels=channels)
    built = training.started(restarted, x, 0, 4, D, 1, halvings)
    found = training.vectors(built, x)
    assert len(found) == 200 * (8 // 2**halvings) ** 2
    scale, mean = torch.std_mean(found, 0, correction=0)
    torch.testing.assert_close(mean, torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale, torch.ones(D), atol=1e-5, rtol=0)


def test_a_start_looks_at_the_first_images_alone(monkeypatch):
    monkeypatch.setattr(training, "FIRST", 10)
    seen = []

    def spying(vectors, generator):
        seen.append(vectors)
        return plain(vectors, generator)

    x = images()
    first = training.started(spying, x, 0, width=4, dim=D)
    second = training.started(spying, torch.cat([x[:10], 5 * x[10:]]), 0, width=4, dim=D)
    assert same(first, second)
    assert seen[0].shape == (40, D)
    assert torch.equal(seen[0], training.vectors(first, x[:10]))


def test_images_that_are_all_alike_start_without_infinities():
    found = training.started(plain, torch.full((4, 1, 8, 8), 0.5), 0, width=4, dim=D)
    assert all(parameter.isfinite().all() for parameter in found.parameters())


def test_models_of_one_seed_start_from_the_same_networks():
    models = [model(make) for make in (restarted, by_loss, gumbel, plain)]
    for other in models[1:]:
        assert same(models[0].encoder, other.encoder)
        assert same(models[0].decoder, other.decoder)
    assert torch.equal(models[0].quantizer.codebook, models[1].quantizer.codebook)
    assert not same(models[0], model(seed=1))
    # The codes are not the draws that made the weights.
    drawn = normal_codebook(K, D, generator(0))
    assert not torch.equal(models[0].quantizer.codebook, drawn)


def test_the_pace_rises_for_100_steps_and_falls_to_nothing():
    paces = [training.pace(step, 1000) for step in range(1000)]
    assert paces[0] == pytest.approx(0.01)
    assert paces[99] == paces[100] == 1
    assert max(paces) == 1
    assert paces[550] == pytest.approx(0.5)
    assert paces[999] == pytest.approx(1 / 900)
    assert training.pace(1, 2) == pytest.approx(0.02)
    # A training of no more than 100 steps only rises.
    for steps in (60, 100):
        rises = [(step + 1) / 100 for step in range(steps)]
        assert [training.pace(step, steps) for step in range(steps)] == pytest.approx(rises)


def test_the_loss_is_the_error_in_units_of_the_variance_and_the_quantizers():
    x = images(6)
    output = model(by_loss)(x)
    expected = (output.images - x).square().mean() / 0.04 + output.quantized.loss
    assert training.loss(output, x, 0.04).item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.quantized.loss > 0


def test_fit_is_adam_at_its_pace_then_the_update_of_the_codes():
    x, steps = images(), 3
    fitted, byhand = model(), model()
    training.fit(fitted, x, 5, steps, 1e-2, batch=8)
    optimizer = torch.optim.Adam(byhand.parameters(), lr=1.0)
    batches = vae_training.minibatches(40, 8, generator(5))
    draws = generator(20_005)
    byhand.train()
    for step in range(steps):
        batch = x[next(batches)]
        optimizer.param_groups[0]["lr"] = 1e-2 * training.pace(step, steps)
        optimizer.zero_grad()
        output = byhand(batch)
        # The vectors that the update sees are those of the lookup, before the optimizer's step.
        rows = byhand.vectors(batch).detach().flatten(0, 2)
        training.loss(output, batch, x.var().item()).backward()
        optimizer.step()
        byhand.quantizer.update(rows, output.quantized.indices, draws)
    assert same(fitted, byhand)
    assert not same(fitted, model())


def test_the_codes_that_a_loss_trains_move_too():
    fitted = model(by_loss)
    start = fitted.quantizer.codebook.detach().clone()
    training.fit(fitted, images(), 0, 2, 1e-2, batch=8)
    assert not torch.equal(fitted.quantizer.codebook, start)


def test_what_needs_no_gradient_is_not_trained():
    fitted = model()
    fitted.encoder.requires_grad_(False)
    training.fit(fitted, images(), 0, 2, 1e-2, batch=8)
    assert same(fitted.encoder, model().encoder)
    assert not same(fitted.decoder, model().decoder)


@pytest.mark.parametrize("make", [restarted, gumbel])
def test_where_a_fit_is_measured_changes_nothing(make):
    found = []
    for points in ((), (4,), (0, 1, 3), (2, 4)):
        fitted = model(make)
        measure = lambda m: training.measures(m, images(9, seed=2))  # noqa: E731
        curve = training.fit(fitted, images(), 0, 4, 1e-2, points, measure, batch=8)
        assert len(curve.values) == len(points)
        assert curve.seconds > 0
        found.append((fitted, curve))
    assert all(same(found[0][0], fitted) for fitted, _ in found)
    assert found[1][1].values[-1] == found[3][1].values[-1]
    assert found[2][1].values[0] == training.measures(model(make), images(9, seed=2))


def test_training_is_noisy_and_measuring_is_not():
    modes = []
    fitted = model(gumbel)
    fitted.quantizer.register_forward_pre_hook(lambda q, _: modes.append(q.training))

    def measure(m):
        assert not torch.is_grad_enabled()
        return training.measures(m, images(2))

    training.fit(fitted, images(), 0, 2, 1e-2, (0, 1), measure, batch=8)
    assert modes == [False, True, False, True]
    assert not fitted.training


def test_a_fit_of_no_steps_only_measures():
    fitted = model()
    curve = training.fit(fitted, images(), 0, 0, 1e-2, (0,), lambda m: 7.0, batch=8)
    assert curve.values == [7.0]
    assert same(fitted, model())


def test_training_brings_images_back():
    # One position, one of two pictures: a single code of each is enough.
    pair = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    x = pair[torch.arange(64) % 2]
    fitted = training.started(restarted, x, 0, width=4, dim=D)
    before = training.psnr(fitted, x)
    training.fit(fitted, x, 0, 150, 2e-2, batch=8)
    assert training.psnr(fitted, x) > max(20, before + 10)
    assert training.measures(fitted, x).used == 2


@pytest.mark.parametrize("points", [(5,), (-1,)])
def test_a_point_outside_the_training_is_refused(points):
    with pytest.raises(ValueError, match="^points: must be from 0 to 4"):
        training.fit(model(), images(), 0, 4, 1e-2, points)


def test_a_batch_larger_than_the_images_is_refused():
    with pytest.raises(ValueError, match="^batch: "):
        training.fit(model(), images(8), 0, 1, 1e-2)


def test_what_does_not_start_on_images_is_refused():
    with pytest.raises(ValueError, match="^images: "):
        training.started(plain, images()[:, 0], 0)
    with pytest.raises(ValueError, match="^images: "):
        training.started(plain, images(0), 0)


def test_the_model_may_be_built_under_other_defaults():
    expected = model()
    torch.set_default_dtype(torch.float64)
    try:
        found = model()
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(expected, found)
    assert isinstance(found.encoder, nn.Module)
    assert all(parameter.dtype == torch.float32 for parameter in found.parameters())


def test_images_of_one_colour_have_no_scale():
    built, flat = model(), torch.full((8, 1, 8, 8), 0.5, dtype=torch.float32)
    with pytest.raises(ValueError, match="train: "):
        training.fit(built, flat, 0, 2, 1e-3, batch=4)
