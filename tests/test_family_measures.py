"""The measures of a model of binary pixels, on models and labels whose answers are known."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import distributions

from gradbook import family_measures as measures
from gradbook.families import Model
from gradbook.family_measures import Bits


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bits(*shape, seed=1):
    return torch.rand(shape, generator=generator(seed)).round()


def counted(x):
    """A log-probability that tells how many pixels are on."""
    return -1.5 - x.sum(1)


def model(log_prob=lambda x, generator: counted(x)):
    return Model((), None, None, log_prob)


def test_pooling_is_the_mean_of_blocks_row_by_row():
    """Grey levels of 0 and 255 leave nothing to chance where a block agrees."""
    images = torch.zeros(2, 4, 6, dtype=torch.uint8)
    images[0, :2, 2:4] = 255
    images[1, 2:, 4:] = 255
    found = measures.pooled(images, generator())
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.eye(6)[[1, 5]])


def test_a_pooled_pixel_is_on_as_often_as_its_block_is_bright():
    block = torch.tensor([[10, 200], [30, 90]], dtype=torch.uint8)
    found = measures.pooled(block.expand(20_000, 2, 2), generator())
    p = 330 / 4 / 255
    assert abs(found.mean().item() - p) <= 4.5 * math.sqrt(p * (1 - p) / 20_000)


def test_an_estimate_is_a_mean_and_the_error_of_the_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    squares = 9 + 4 + 0 + 25
    expected = {"value": 4.0, "stderr": pytest.approx(math.sqrt(squares / 3 / 4), rel=1e-12)}
    assert measures.estimate(values) == expected


def test_the_likelihood_is_that_of_the_first_images_of_each_split():
    train, test = bits(9, 5), bits(8, 5, seed=2)
    train[6:] = test[6:] = 1.0
    found = measures.likelihood(model(), Bits(train, test), 6, generator())
    assert set(found) == {"nll", "train_nll", "bits_per_dimension"}
    for name, x in (("nll", test), ("train_nll", train)):
        assert found[name] == measures.estimate(1.5 + x[:6].double().sum(1))
    mean = found["nll"]["value"]
    assert found["bits_per_dimension"] == pytest.approx(mean / 5 / math.log(2), rel=1e-12)


def test_the_divergence_is_paired_image_by_image():
    """Where log p - log q is the same for all images, nothing of their spread is left."""
    one = Bits(bits(9, 5), bits(8, 5), None, lambda x: counted(x).double() + 0.25)
    found = measures.likelihood(model(), one, 8, generator())
    assert found["kl"] == {"value": 0.25, "stderr": 0.0}


def test_every_image_of_a_large_set_has_noise_of_its_own():
    """In chunks, from one generator, test images first."""

    def noisy(x, generator):
        return torch.randn(len(x), generator=generator)

    n = measures.CHUNK + 3
    found = measures.likelihood(model(noisy), Bits(bits(n, 2), bits(n, 2)), n, generator(4))
    drawn = generator(4)
    rows = [torch.randn(k, generator=drawn) for k in (n - 3, 3, n - 3, 3)]
    assert found["nll"] == measures.estimate(-torch.cat(rows[:2]).double())
    assert found["train_nll"] == measures.estimate(-torch.cat(rows[2:]).double())


def test_a_model_without_log_probability_has_no_likelihood():
    data = Bits(bits(9, 5), bits(8, 5))
    assert measures.likelihood(model(None), data, 8, generator()) is None


def test_independent_pixels_have_the_frequencies_of_the_training_set():
    train = torch.tensor([[0.0, 0, 1], [0, 1, 1], [0, 1, 0], [0, 1, 1]])
    fitted = measures.independent(Bits(train, train[:0]))
    p = torch.tensor([1, 4, 4], dtype=torch.float64) / 6
    expected = distributions.Bernoulli(p).log_prob(train.double()).sum(1)
    found = fitted.log_prob(train, generator())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert fitted.players == ()


def labelled(n=40, seed=3):
    """A set whose label is its first pixel, and is told by none of the others."""
    train, test = bits(n, 6, seed=seed), bits(n, 6, seed=seed + 1)
    return Bits(train, test, (train[:, 0].long(), test[:, 0].long()))


def test_features_that_name_the_label_are_read_without_a_fault():
    assert measures.probe(lambda x: x[:, :1], labelled(), 40, 1.0) == 1.0
    # A feature that never varies changes nothing.
    assert measures.probe(lambda x: x[:, :1] * torch.tensor([1.0, 0.0]), labelled(), 40, 1.0) == 1.0


def test_constant_features_leave_the_more_common_label():
    data = labelled()
    common = data.labels[0].float().mean().round()
    expected = (data.labels[1] == common).double().mean().item()
    assert measures.probe(torch.ones_like, data, 40, 1.0) == pytest.approx(expected)


def mixed(n=200):
    """Labels that features tell in part."""
    x = torch.randn(2 * n, 5, generator=generator(8))
    score = x @ torch.tensor([1.0, -1, 0.5, 0, 0]) + torch.randn(2 * n, generator=generator(9))
    labels = (score > 0).long() + (score > 1).long()
    return Bits(x[:n], x[n:], (labels[:n], labels[n:]))


def test_the_probe_is_scikit_learns_on_standardized_features():
    data = mixed()
    train, test = (x.double() for x in (data.train, data.test))
    mean, scale = train[:150].mean(0), train[:150].std(0)
    classifier = LogisticRegression(C=0.01, max_iter=1_000)
    classifier.fit(((train[:150] - mean) / scale).numpy(), data.labels[0][:150].numpy())
    expected = classifier.score(((test[:150] - mean) / scale).numpy(), data.labels[1][:150].numpy())
    assert measures.probe(lambda x: x, data, 150, 0.01) == pytest.approx(expected)
    looser = measures.probe(lambda x: x, data, 150, 10.0)
    assert looser != pytest.approx(expected)


def test_the_unit_of_a_feature_does_not_matter():
    data = mixed()
    units = torch.tensor([1e-4, 1.0, 1e4, 3.0, 0.1])
    plain = measures.probe(lambda x: x, data, 200, 0.01)
    assert measures.probe(lambda x: units * x + 5, data, 200, 0.01) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.pooled(torch.zeros(2, 3, 4), generator()), "images: must be"),
        (lambda: measures.pooled(torch.zeros(2, 4, 3), generator()), "images: must be"),
        (lambda: measures.pooled(torch.zeros(4, 4), generator()), "images: must be"),
        (lambda: measures.pooled(torch.full((1, 2, 2), 256.0), generator()), "images: "),
        (lambda: measures.estimate(torch.zeros(1)), "values: "),
        (lambda: measures.estimate(torch.zeros(2, 2)), "values: "),
        (
            lambda: measures.probe(lambda x: x, Bits(bits(4, 2), bits(4, 2)), 4, 1.0),
            "bits: must have labels",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
