"""The VAE with a normal latent: its weights, its terms, its bound, and importance weights."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import distributions, nn

from gradbook import normal_vae
from gradbook.normal_vae import Posterior

PIXELS, LATENTS, HIDDEN = 6, 2, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def images(n=4, seed=2, pixels=PIXELS):
    return torch.rand(n, pixels, generator=generator(seed)).round().double()


def model(latents=LATENTS):
    """In float64, with biases, and weights large enough for images to differ."""
    built = normal_vae.build(PIXELS, latents, HIDDEN, generator()).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter *= 1.5
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator(3)).double()
    return built


def posterior(n=4, d=3, seed=4):
    return Posterior(normals(n, d, seed=seed), 0.7 * normals(n, d, seed=seed + 1))


def theirs(q):
    return distributions.Normal(q.mean, (q.log_variance / 2).exp())


def grid(width, size=20_001):
    """Points of the line and the logarithms of their shares of a standard normal."""
    points = torch.linspace(-width, width, size, dtype=torch.float64)
    density = distributions.Normal(0.0, 1.0).log_prob(points)
    return points, density + math.log(2 * width / (size - 1))


def smooth_model():
    """One latent and a decoder without kinks, which would cost sums over a grid their digits."""
    built = model(latents=1)
    first, last = built.decoder.hidden, built.decoder.logits
    return SimpleNamespace(encoder=built.encoder, decoder=lambda z: last(first(z).tanh()))


def evidence(built, batch):
    """log p(x) for one latent: the likelihood summed over a fine grid of the prior."""
    points, log_shares = grid(10)
    pixels = distributions.Bernoulli(logits=built.decoder(points[:, None])[:, None])
    return (pixels.log_prob(batch).sum(-1) + log_shares[:, None]).logsumexp(0)


def test_the_articles_model_has_these_weights():
    built = normal_vae.build(784, 2, 256, generator())
    encoder = (784 + 1) * 256 + 2 * (256 + 1) * 2
    decoder = (2 + 1) * 256 + (256 + 1) * 784
    assert sum(p.numel() for p in built.encoder.parameters()) == encoder
    assert sum(p.numel() for p in built.decoder.parameters()) == decoder
    assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_initial_weights_are_glorots_and_biases_zero():
    built = normal_vae.build(784, 20, 256, generator())
    for layer, fans in (
        (built.encoder.hidden, 784 + 256),
        (built.encoder.mean, 256 + 20),
        (built.encoder.log_variance, 256 + 20),
        (built.decoder.hidden, 20 + 256),
        (built.decoder.logits, 256 + 784),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    sizes = PIXELS, LATENTS, HIDDEN
    built, again, other = (normal_vae.build(*sizes, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [m.encoder.hidden.weight for m in (built, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weights_do_not_depend_on_the_default_type():
    plain = normal_vae.build(PIXELS, LATENTS, HIDDEN, generator())
    torch.set_default_dtype(torch.float64)
    try:
        other = normal_vae.build(PIXELS, LATENTS, HIDDEN, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_both_networks_are_one_layer_of_rectifiers():
    built, batch = model(), images()
    q, z = built.encoder(batch), normals(3, 4, LATENTS)
    h = (batch @ built.encoder.hidden.weight.T + built.encoder.hidden.bias).clamp(min=0)
    for ours, head in zip(q, (built.encoder.mean, built.encoder.log_variance), strict=True):
        torch.testing.assert_close(ours, h @ head.weight.T + head.bias)
    h = (z @ built.decoder.hidden.weight.T + built.decoder.hidden.bias).clamp(min=0)
    last = built.decoder.logits
    torch.testing.assert_close(built.decoder(z), h @ last.weight.T + last.bias)


def test_codes_have_the_posteriors_moments_exactly():
    q = posterior()
    noise = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    z = normal_vae.code(q, noise[:, None].expand(6, 4, 3))
    torch.testing.assert_close(z.mean(0), q.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z.var(0, correction=0), q.log_variance.exp(), rtol=1e-12, atol=0)


def test_kl_is_torchs():
    q = posterior()
    exact = distributions.kl_divergence(theirs(q), distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(normal_vae.kl(q), exact, rtol=1e-12, atol=1e-12)


def test_kl_keeps_its_digits_near_the_prior():
    tiny = torch.tensor([[1e-5]], dtype=torch.float64)
    found = normal_vae.kl(Posterior(torch.zeros_like(tiny), tiny)).item()
    # (exp(t) - 1 - t) / 2 = t^2 / 4 + t^3 / 12 + ...
    assert found == pytest.approx(1e-10 / 4 + 1e-15 / 12, rel=1e-9, abs=0)


def test_the_numbers_of_the_article():
    q = Posterior(torch.tensor([[0.7]]).double(), torch.tensor([[2 * math.log(0.5)]]).double())
    assert normal_vae.kl(q).item() == pytest.approx(0.56315, abs=5e-6)


def test_log_likelihood_is_that_of_bernoulli_pixels():
    logits, batch = normals(3, 4, PIXELS), images()
    exact = distributions.Bernoulli(logits=logits).log_prob(batch).sum(-1)
    ours = normal_vae.log_likelihood(logits, batch)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_grey_levels_get_the_mean_over_binary_pixels():
    logits, grey = normals(4, PIXELS), torch.rand(4, PIXELS, generator=generator()).double()
    bernoulli = distributions.Bernoulli(logits=logits)
    black, white = torch.zeros_like(grey), torch.ones_like(grey)
    mean = grey * bernoulli.log_prob(white) + (1 - grey) * bernoulli.log_prob(black)
    ours = normal_vae.log_likelihood(logits, grey)
    torch.testing.assert_close(ours, mean.sum(-1), rtol=1e-12, atol=1e-12)


def test_the_elbo_is_its_two_terms():
    built, batch, noise = model(), images(), normals(4, LATENTS)
    q = built.encoder(batch)
    pixels = distributions.Bernoulli(logits=built.decoder(q.mean + theirs(q).stddev * noise))
    kl = distributions.kl_divergence(theirs(q), distributions.Normal(0.0, 1.0))
    exact = pixels.log_prob(batch).sum(1) - kl.sum(1)
    torch.testing.assert_close(normal_vae.elbo(built, batch, noise), exact, rtol=1e-12, atol=1e-12)


def test_log_weights_are_the_ratio_of_torchs_densities():
    built, batch, noise = model(), images(), normals(7, 4, LATENTS)
    q = theirs(built.encoder(batch))
    z = q.mean + q.stddev * noise
    prior = distributions.Normal(0.0, 1.0)
    pixels = distributions.Bernoulli(logits=built.decoder(z))
    ratio = (prior.log_prob(z) - q.log_prob(z)).sum(-1)
    exact = pixels.log_prob(batch).sum(-1) + ratio
    ours = normal_vae.log_weights(built, batch, noise)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_the_mean_weight_is_the_evidence():
    """A fine grid for noise makes the mean over the noise exact."""
    built, batch = smooth_model(), images()
    points, log_shares = grid(60)
    noise = points[:, None, None].expand(-1, 4, 1)
    log_w = normal_vae.log_weights(built, batch, noise)
    found = (log_shares[:, None] + log_w).logsumexp(0)
    torch.testing.assert_close(found, evidence(built, batch), rtol=0, atol=1e-10)


def test_the_elbo_and_the_mean_log_weight_agree_and_bound_the_evidence():
    built, batch = smooth_model(), images()
    points, log_shares = grid(10, 2001)
    shares = log_shares.exp()
    noise = points[:, None, None].expand(-1, 4, 1)
    by_weights = shares @ normal_vae.log_weights(built, batch, noise)
    by_terms = shares @ torch.stack([normal_vae.elbo(built, batch, e) for e in noise])
    torch.testing.assert_close(by_weights, by_terms, rtol=0, atol=1e-10)
    assert (evidence(built, batch) - by_terms > 0.005).all()


def linear_model():
    """A linear decoder with orthogonal columns and the encoder that is its exact posterior."""
    weight = torch.linalg.qr(normals(PIXELS, LATENTS)).Q * torch.tensor([2.0, 0.7]).double()
    noise_variance = 0.3
    variance = noise_variance / (weight.square().sum(0) + noise_variance)

    def encoder(x):
        mean = variance * (x @ weight) / noise_variance
        return Posterior(mean, variance.log().expand_as(mean))

    def log_likelihood(mean, x):
        pixels = distributions.Normal(mean, math.sqrt(noise_variance))
        return pixels.log_prob(x).sum(-1)

    marginal = weight @ weight.T + noise_variance * torch.eye(PIXELS).double()
    exact = distributions.MultivariateNormal(torch.zeros(PIXELS).double(), marginal)
    built = SimpleNamespace(encoder=encoder, decoder=lambda z: z @ weight.T)
    return built, log_likelihood, exact


def test_another_decoder_works_and_the_true_posterior_makes_all_weights_equal():
    built, log_likelihood, exact = linear_model()
    x = normals(4, PIXELS, seed=8)
    log_w = normal_vae.log_weights(built, x, normals(9, 4, LATENTS), log_likelihood)
    torch.testing.assert_close(log_w, exact.log_prob(x).expand(9, 4), rtol=1e-12, atol=1e-10)
    estimate = normal_vae.log_prob_estimate(log_w)
    torch.testing.assert_close(estimate.value, exact.log_prob(x), rtol=1e-12, atol=1e-10)
    assert (estimate.stderr < 1e-10).all()


def test_the_elbo_of_another_decoder_has_no_gap_at_the_true_posterior():
    built, log_likelihood, exact = linear_model()
    x = normals(4, PIXELS, seed=8)
    # The bound is quadratic in the noise, and these codes have its first two moments.
    codes = math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)]).double()
    values = [normal_vae.elbo(built, x, e.expand(4, 2), log_likelihood) for e in codes]
    torch.testing.assert_close(torch.stack(values).mean(0), exact.log_prob(x))


def test_gradients_reach_both_networks():
    built, batch = model(), images()
    bound = normal_vae.iwae_bound(normal_vae.log_weights(built, batch, normals(5, 4, LATENTS)))
    for value in (normal_vae.elbo(built, batch, normals(4, LATENTS)).sum(), bound.sum()):
        for slope in torch.autograd.grad(value, list(built.parameters())):
            assert slope.abs().max() > 0


def test_the_gradient_of_a_log_weight_is_that_of_its_differences():
    """q's own density counts: the gradient is not that of the likelihood alone."""
    built, batch, noise = model(), images(), normals(3, 4, LATENTS)
    bias = built.encoder.log_variance.bias
    value = normal_vae.log_weights(built, batch, noise).sum()
    (slope,) = torch.autograd.grad(value, bias)
    sides = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            bias[0] += step
            sides.append(normal_vae.log_weights(built, batch, noise).sum().item())
            bias[0] -= step
    assert slope[0].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6)


def test_an_empty_batch_has_empty_bounds():
    built, none = model(), images(0)
    assert normal_vae.elbo(built, none, normals(0, LATENTS)).shape == (0,)
    log_w = normal_vae.log_weights(built, none, normals(3, 0, LATENTS))
    assert log_w.shape == (3, 0)
    assert normal_vae.iwae_bound(log_w).shape == (0,)
    assert normal_vae.log_prob_estimate(log_w).stderr.shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_vae.build(0, 2, 5, generator()), "^pixels: must be positive"),
        (lambda: normal_vae.build(6, 0, 5, generator()), "^latents: must be positive"),
        (lambda: normal_vae.build(6, 2, 0, generator()), "^hidden: must be positive"),
        (lambda: normal_vae.code(posterior(), normals(1, 3)), "^noise: must be"),
        (lambda: normal_vae.code(posterior(), normals(4, 3) * math.nan), "^noise: must be finite"),
        (lambda: normal_vae.kl(posterior()._replace(mean=normals(4, 3) / 0)), "^mean: "),
        (lambda: normal_vae.kl(Posterior(normals(1, 1), normals(1, 1) / 0)), "^log_variance: "),
        (lambda: normal_vae.log_likelihood(normals(4, 6), 1.01 * images()), "^x: must be from"),
        (lambda: normal_vae.log_likelihood(normals(4, 6), images() - 0.01), "^x: must be from"),
        (lambda: normal_vae.log_likelihood(normals(4, 6), images() * math.nan), "^x: must be from"),
        (lambda: normal_vae.log_likelihood(normals(3, 6), images()), "^x: does not broadcast"),
        (lambda: normal_vae.log_likelihood(normals(4, 6) / 0, images()), "^logits: must be finite"),
        (lambda: normal_vae.elbo(model(), images(), normals(3, 4, 2)), "^noise: must be .n, d"),
        (lambda: normal_vae.elbo(model(), images(), normals(1, 2)), "^noise: must be"),
        (lambda: normal_vae.log_weights(model(), images(), normals(4, 2)), "^noise: must be .K"),
        (lambda: normal_vae.log_weights(model(), images(), normals(3, 1, 2)), "^noise: must be"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_is_its_two_parts():
    parts = nn.Identity(), nn.Identity()
    built = normal_vae.NormalVAE(*parts)
    assert (built.encoder, built.decoder) == parts
