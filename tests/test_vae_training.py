"""Batches, binary pixels, test bounds and the training loop, on images of our own."""

import itertools
import math

import pytest
import torch

from gradbook import data, vae, vae_gradients, vae_training


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


@pytest.fixture
def split_images(stand_in):
    return stand_in(train=30, test=20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(seed=0):
    return vae.build(2, 3, generator(seed), width=2)


def images(n, seed=1):
    return torch.rand(n, 28, 28, generator=generator(seed)).round()


def exact(model, images, step, generator):
    return vae_gradients.exact(model, images)


def relaxed(model, images, step, generator):
    noise = vae_training.gumbels(len(images), 2, 3, generator=generator)
    return vae_gradients.relaxed(model, images, noise, 1.0)


def test_the_digest_needs_no_data(monkeypatch):
    """The tests of the data compute it again."""
    monkeypatch.setattr(data, "fashion_mnist", lambda *_: pytest.fail("the data were read"))
    assert vae_training.data_digest() == data.FASHION_MNIST_PIXELS_SHA256


def test_grey_images_go_from_zero_to_one(split_images):
    grey = vae_training.grey_images("test")
    assert grey.shape == (20, 28, 28)
    assert grey.dtype == torch.float32
    assert (grey.min(), grey.max()) == (0, 1)
    torch.testing.assert_close(255 * grey, split_images["test"].images.float())


def test_binary_images_are_drawn_once(split_images):
    binary = vae_training.binary_images("train")
    assert binary.shape == (30, 28, 28)
    assert set(binary.unique().tolist()) == {0, 1}
    assert torch.equal(binary, vae_training.binary_images("train"))
    assert vae_training.binary_images("train", 7).shape == (7, 28, 28)


def test_a_binary_pixel_has_the_mean_of_its_grey_level():
    levels = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    drawn = vae_training.binarized(levels.expand(20_000, 5).contiguous(), generator())
    stderr = (levels * (1 - levels) / 20_000).sqrt()
    assert ((drawn.mean(0) - levels).abs() <= 4.5 * stderr).all()
    with pytest.raises(ValueError, match="images: "):
        vae_training.binarized(levels + 0.01, generator())
    with pytest.raises(ValueError, match="images: "):
        vae_training.binarized(levels - 0.01, generator())


def test_each_pass_sees_each_image_once_in_a_new_order():
    batches = list(itertools.islice(vae_training.minibatches(10, 3, generator()), 6))
    assert all(len(batch) == 3 for batch in batches)
    passes = [torch.cat(batches[:3]).tolist(), torch.cat(batches[3:]).tolist()]
    assert all(len(set(one)) == 9 for one in passes)
    assert passes[0] != passes[1]
    again = list(itertools.islice(vae_training.minibatches(10, 3, generator()), 6))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    whole = next(vae_training.minibatches(10, 10, generator()))
    assert sorted(whole.tolist()) == list(range(10))
    for size in (0, 11):
        with pytest.raises(ValueError, match="size: must be from 1 to 10"):
            next(vae_training.minibatches(10, size, generator()))


def test_noise_is_drawn_on_the_cpu_in_float32_whatever_the_defaults():
    expected = vae_training.gumbels(4, 2, 3, generator=generator())
    with torch.device("meta"):
        drawn = vae_training.gumbels(4, 2, 3, generator=generator())
        order = next(vae_training.minibatches(10, 3, generator()))
    assert torch.equal(drawn, expected)
    assert torch.equal(order, next(vae_training.minibatches(10, 3, generator())))
    assert expected.dtype == torch.float32


def test_the_bounds_are_means_over_all_images(monkeypatch):
    monkeypatch.setattr(vae_training, "CHUNK", 4)
    built, batch = model(), images(10)
    expected = -vae.exact_elbo(built, batch).mean().item()
    assert vae_training.exact_bound(built, batch) == pytest.approx(expected, rel=1e-5)
    drawn = generator(3)
    noise = torch.cat([vae_training.gumbels(n, 2, 3, generator=drawn) for n in (4, 4, 2)])
    expected = -vae.sampled_elbo(built, batch, noise).mean().item()
    assert vae_training.hard_bound(built, batch, seed=3) == pytest.approx(expected, rel=1e-5)


def test_fit_is_adam_on_the_batches_of_its_seed():
    trained, by_hand, batch = model(), model(), images(12)
    curve = vae_training.fit(
        trained, exact, batch, 7, (0, 2, 5), lambda m: vae_training.exact_bound(m, batch), 4, 0.01
    )
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    batches = vae_training.minibatches(12, 4, generator(7))
    expected = [vae_training.exact_bound(by_hand, batch)]
    for step in range(5):
        optimizer.zero_grad()
        vae_gradients.exact(by_hand, batch[next(batches)]).backward()
        optimizer.step()
        if step in (1, 4):
            expected.append(vae_training.exact_bound(by_hand, batch))
    assert curve.values == pytest.approx(expected, rel=1e-6)
    assert 0 < curve.seconds < math.inf


def test_all_losses_of_one_seed_see_the_same_batches_and_count_the_steps():
    seen = {"few": [], "many": []}

    def spying(name, draws):
        def loss(model, batch, step, generator):
            torch.rand(draws, generator=generator)
            seen[name].append((step, batch.sum().item()))
            return vae_gradients.exact(model, batch)

        return loss

    for name, draws in (("few", 1), ("many", 1000)):
        vae_training.fit(model(), spying(name, draws), images(12), 7, (2, 4), lambda m: 0.0, 4)
    assert [step for step, _ in seen["few"]] == [0, 1, 2, 3]
    assert seen["few"] == seen["many"]


def test_where_a_fit_is_measured_changes_nothing():
    one, other, batch = model(), model(), images(12)
    for trained, points in ((one, (4,)), (other, (4, 1, 0))):
        vae_training.fit(trained, relaxed, batch, 7, points, lambda m: 0.0, 4)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_fit_of_no_steps_only_measures():
    curve = vae_training.fit(model(), exact, images(4), 0, (0,), lambda m: 3.0, 2)
    assert curve.values == [3.0]
    assert curve.seconds >= 0


def test_divergence_is_a_mean_over_images(monkeypatch):
    monkeypatch.setattr(vae_training, "CHUNK", 3)
    built, batch = model(), images(7)
    exact = vae.categorical_kl(built.encoder(batch)).mean().item()
    assert vae_training.divergence(built, batch) == pytest.approx(exact, rel=1e-4)


def test_a_started_model_paints_the_mean_and_tells_images_apart_by_what_differs():
    train = images(9)
    train[:, 0, 0] = 0.0
    built = vae_training.started(2, 3, 5, train)
    plain = vae.build(2, 3, generator(5))
    mean = train.mean(0).clamp(1e-3, 1 - 1e-3)
    code = torch.eye(3)[[0, 2]][None]
    painted = built.decoder(code) - built.decoder.start
    assert torch.equal(built.decoder.start, mean.logit())
    assert torch.equal(built.encoder.centre, mean)
    assert built.encoder.leak == built.decoder.leak == 0.2
    assert torch.equal(built.encoder.conv1.weight, plain.encoder.conv1.weight)
    assert painted.abs().mean() < built.decoder.start.abs().mean()
