"""The categorical VAE: its weights, its likelihood, two divergences and the exact bound."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import distributions

from gradbook import gumbel, vae

LATENTS, CLASSES = 2, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(latents=LATENTS, classes=CLASSES):
    """Small, in float64, with biases, and logits large enough for q to differ between images."""
    built = vae.build(latents, classes, generator(), width=4).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(1)).double()
        built.encoder.logits.weight *= 4
    return built


def images(n=3, seed=2):
    return torch.rand(n, 28, 28, generator=generator(seed)).round().double()


def logits(*shape, seed=3):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def noise(*shape, seed=4):
    return gumbel.gumbel_noise(shape, generator(seed), torch.float64)


def by_hand(built, batch):
    """log p(x | z) and q(z | x), [codes, n], one code at a time."""
    q = distributions.OneHotCategorical(logits=built.encoder(batch))
    likelihoods, probabilities = [], []
    for index in itertools.product(range(CLASSES), repeat=LATENTS):
        code = torch.eye(CLASSES, dtype=torch.float64)[list(index)]
        pixels = distributions.Bernoulli(logits=built.decoder(code[None])[0])
        likelihoods.append(pixels.log_prob(batch).sum((1, 2)))
        probabilities.append(q.log_prob(code).sum(-1).exp())
    return torch.stack(likelihoods), torch.stack(probabilities)


def test_the_articles_model_has_these_weights():
    built = vae.build(32, 10, generator())
    encoder = 320 + 18_496 + 100_384 + 10_560
    decoder = 10_272 + 103_488 + 18_464 + 289
    assert sum(p.numel() for p in built.encoder.parameters()) == encoder
    assert sum(p.numel() for p in built.decoder.parameters()) == decoder
    assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_initial_weights_are_glorots_and_biases_zero():
    built = vae.build(32, 10, generator())
    for layer, fans in (
        (built.encoder.conv2, (32 + 64) * 9),
        (built.decoder.conv1, (32 + 64) * 9),
        (built.encoder.hidden, 3136 + 32),
        (built.decoder.spread, 3136 + 32),
    ):
        bound = math.sqrt(6 / fans)
        largest = layer.weight.abs().max().item()
        assert 0.99 * bound < largest <= bound
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    built, again, other = (vae.build(2, 3, generator(seed), 4) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [m.encoder.hidden.weight for m in (built, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weights_do_not_depend_on_the_default_type():
    plain = vae.build(2, 3, generator(), 4)
    torch.set_default_dtype(torch.float64)
    try:
        other = vae.build(2, 3, generator(), 4)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_images_of_a_batch_do_not_see_each_other():
    built, batch = model(), images()
    given = built.encoder(batch)
    assert given.shape == (3, LATENTS, CLASSES)
    codes = gumbel.gumbel_softmax(given, 1.0, noise(*given.shape))
    pixels = built.decoder(codes)
    assert pixels.shape == (3, 28, 28)
    for i in range(3):
        torch.testing.assert_close(built.encoder(batch[i : i + 1])[0], given[i])
        torch.testing.assert_close(built.decoder(codes[i : i + 1])[0], pixels[i])


def test_every_quarter_of_the_image_reaches_the_encoder_and_the_decoder():
    built, batch = model(), images(1).requires_grad_()
    (slope,) = torch.autograd.grad(built.encoder(batch).square().sum(), batch)
    code = noise(1, LATENTS, CLASSES).requires_grad_()
    pixels = built.decoder(code)[0].unfold(0, 14, 14).unfold(1, 14, 14)
    for rows, columns in itertools.product((slice(0, 14), slice(14, 28)), repeat=2):
        assert (slope[0, rows, columns] != 0).double().mean() > 0.5
    for quarter in pixels.flatten(0, 1):
        (back,) = torch.autograd.grad(quarter.sum(), code, retain_graph=True)
        assert (back != 0).all()


def test_log_likelihood_is_that_of_bernoulli_pixels():
    pixel_logits, batch = logits(3, 28, 28), images()
    exact = distributions.Bernoulli(logits=pixel_logits).log_prob(batch).sum((1, 2))
    ours = vae.log_likelihood(pixel_logits, batch)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_grey_levels_get_the_mean_over_binary_pixels():
    pixel_logits, grey = logits(3, 28, 28), torch.rand(3, 28, 28, generator=generator()).double()
    black, white = torch.zeros(28, 28).double(), torch.ones(28, 28).double()
    bernoulli = distributions.Bernoulli(logits=pixel_logits)
    mean = grey * bernoulli.log_prob(white) + (1 - grey) * bernoulli.log_prob(black)
    ours = vae.log_likelihood(pixel_logits, grey)
    torch.testing.assert_close(ours, mean.sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_categorical_kl_is_torchs():
    given = logits(5, 4, 7)
    q = distributions.Categorical(logits=given)
    prior = distributions.Categorical(logits=torch.zeros_like(given))
    exact = distributions.kl_divergence(q, prior).sum(-1)
    torch.testing.assert_close(vae.categorical_kl(given), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_categorical_kl_goes_from_zero_to_log_of_the_number_of_codes(classes):
    uniform = torch.full((3, classes), 2.5, dtype=torch.float64)
    sure = 1000.0 * torch.eye(classes, dtype=torch.float64)[[0, 0, 0]]
    assert vae.categorical_kl(uniform).item() == pytest.approx(0, abs=1e-12)
    assert vae.categorical_kl(sure).item() == pytest.approx(3 * math.log(classes), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 2.0])
def test_relaxed_kl_is_the_ratio_of_torchs_densities(temperature):
    given, drawn = logits(2, 5), noise(6, 2, 5)
    tau = torch.tensor(temperature, dtype=torch.float64)
    exp_concrete = distributions.relaxed_categorical.ExpRelaxedCategorical
    q, p = (exp_concrete(tau, logits=a) for a in (given, torch.zeros_like(given)))
    log_y = ((given + drawn) / temperature).log_softmax(-1)
    exact = (q.log_prob(log_y) - p.log_prob(log_y)).sum(-1)
    ours = vae.relaxed_kl(given, temperature, drawn)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_relaxed_kl_is_the_same_at_every_temperature():
    given, drawn = logits(2, 5), noise(6, 2, 5)
    one, other = (vae.relaxed_kl(given, temperature, drawn) for temperature in (0.03, 1.7))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_relaxed_kl_has_the_mean_of_its_closed_form():
    """With rates exp(a) the exponentials of minus the noise make hypoexponential sums."""
    given = torch.tensor([[0.3, -0.8, 1.4], [2.0, 0.0, -1.0]], dtype=torch.float64)
    k = given.shape[-1]
    exact = 0.0
    for a in given:
        rates = a.exp()
        mean_log = sum(
            math.prod((r / (r - rates[i])).item() for j, r in enumerate(rates) if j != i)
            * (-0.5772156649015329 - a[i].item())
            for i in range(k)
        )
        psi = -0.5772156649015329 + sum(1 / i for i in range(1, k))
        exact += a.sum().item() - k * psi + k * mean_log
    draws = vae.relaxed_kl(given, 0.7, noise(40_000, 2, k))
    stderr = draws.std().item() / math.sqrt(len(draws))
    assert abs(draws.mean().item() - exact) <= 4.5 * stderr
    assert exact > vae.categorical_kl(given).item() + 100 * stderr


def test_hard_codes_are_one_hot_at_the_largest_perturbed_logit():
    given, drawn = logits(4, 3, 5), noise(4, 3, 5)
    codes = vae.hard_codes(given, drawn)
    assert codes.dtype == torch.float64
    assert torch.equal(codes.sum(-1), torch.ones(4, 3).double())
    assert torch.equal(codes.argmax(-1), (given + drawn).argmax(-1))


def test_exact_elbo_is_the_sum_over_codes():
    built, batch = model(), images()
    likelihoods, probabilities = by_hand(built, batch)
    kl = (probabilities * (probabilities * CLASSES**LATENTS).log()).sum(0)
    exact = (probabilities * likelihoods).sum(0) - kl
    torch.testing.assert_close(vae.exact_elbo(built, batch), exact, rtol=1e-12, atol=1e-9)


def test_exact_elbo_is_the_evidence_less_the_divergence_from_the_posterior():
    built, batch = model(), images()
    likelihoods, q = by_hand(built, batch)
    evidence = likelihoods.logsumexp(0) - LATENTS * math.log(CLASSES)
    posterior = likelihoods.softmax(0)
    gap = (q * (q.log() - posterior.log())).sum(0)
    assert (gap > 0.01).all()
    torch.testing.assert_close(vae.exact_elbo(built, batch), evidence - gap, rtol=0, atol=1e-9)


def test_sampled_elbo_is_unbiased():
    """A linear model of 4x4 images: the bounds ask for no particular size."""
    size, repeats = LATENTS * CLASSES, 4000
    into, out = 0.5 * logits(16, size), logits(size, 16, seed=5)
    small = SimpleNamespace(
        encoder=lambda x: (x.flatten(1) @ into).unflatten(1, (LATENTS, CLASSES)),
        decoder=lambda z: (z.flatten(1) @ out).unflatten(1, (4, 4)),
    )
    batch = images()[:, :4, :4]
    drawn = noise(repeats * 3, LATENTS, CLASSES)
    draws = vae.sampled_elbo(small, batch.repeat(repeats, 1, 1), drawn).unflatten(0, (-1, 3))
    stderr = draws.std(0) / math.sqrt(repeats)
    assert (stderr > 1e-3).all()
    assert ((draws.mean(0) - vae.exact_elbo(small, batch)).abs() <= 4.5 * stderr).all()


def test_an_empty_batch_has_empty_bounds():
    built, none = model(), images(0)
    assert vae.exact_elbo(built, none).shape == (0,)
    assert vae.sampled_elbo(built, none, noise(0, LATENTS, CLASSES)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vae.build(0, 3, generator()), "latents: "),
        (lambda: vae.build(2, 0, generator()), "classes: "),
        (lambda: vae.build(2, 3, generator(), 0), "width: "),
        (lambda: vae.log_likelihood(logits(28, 28), 1.01 * images(1)), "images: "),
        (lambda: vae.log_likelihood(logits(28, 28), images(1) - 0.01), "images: "),
        (lambda: vae.log_likelihood(logits(28, 28), images(1) * math.nan), "images: "),
        (lambda: vae.log_likelihood(logits(2, 28, 28), images(3)), "images: "),
        (lambda: vae.log_likelihood(logits(28, 28) * math.nan, images(1)), "pixel_logits: "),
        (lambda: vae.categorical_kl(logits(2, 3) * math.inf), "logits: "),
        (lambda: vae.relaxed_kl(logits(2, 3), 0.0, noise(2, 3)), "temperature: "),
        (lambda: vae.relaxed_kl(logits(2, 3), 1.0, noise(2, 4)), "noise: "),
        (lambda: vae.hard_codes(logits(2, 3) * math.nan, noise(2, 3)), "logits: "),
        (lambda: vae.sampled_elbo(model(), images(), noise(1, 2, 3)), "noise: "),
        (lambda: vae.exact_elbo(model(), images() + 0.5), "images: "),
        (lambda: vae.exact_elbo(vae.build(32, 10, generator(), 1), images().float()), "latents: "),
        (
            lambda: vae.build(2, 3, generator(), mean=torch.full((28, 27), 0.5)),
            "mean: must be \\[28",
        ),
        (lambda: vae.build(2, 3, generator(), mean=torch.zeros(28, 28)), "mean: must be strictly"),
        (lambda: vae.build(2, 3, generator(), mean=torch.ones(28, 28)), "mean: must be strictly"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mean_moves_what_the_encoder_sees_and_where_the_decoder_starts():
    mean = torch.rand(28, 28, generator=generator(7)).clamp(0.1, 0.9)
    plain = vae.build(2, 3, generator(), 4)
    moved = vae.build(2, 3, generator(), 4, mean=mean)
    batch, code = images().float(), torch.eye(3)[[0, 2]][None]
    torch.testing.assert_close(moved.encoder(batch), plain.encoder(batch - mean))
    torch.testing.assert_close(moved.decoder(code), plain.decoder(code) + mean.logit())
    assert [p.shape for p in moved.parameters()] == [p.shape for p in plain.parameters()]


def test_leaking_units_never_die():
    batch, code = images(1).float(), torch.eye(3)[[0, 2]][None]
    for leak, dead in ((0.0, True), (0.2, False)):
        built = vae.build(2, 3, generator(), 4, leak)
        with torch.no_grad():
            built.encoder.hidden.bias -= 1e3
            built.decoder.hidden.bias -= 1e3
        for part, given in ((built.encoder, batch), (built.decoder, code)):
            slope = torch.autograd.grad(part(given).sum(), part.hidden.weight)[0]
            assert (slope == 0).all().item() == dead
