"""The linear VAE: its exact bound by a second route, its optimum, and the saddles around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions

from gradbook import linear_vae, ppca
from gradbook.linear_vae import LinearVAE
from gradbook.ppca import Ppca

SIZE, LATENTS = 5, 2


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def data(n=40, seed=0):
    x = normals(n, SIZE, seed=seed) @ normals(SIZE, SIZE, seed=seed + 1)
    return x - x.mean(0)


def covariance(seed=0):
    return data(seed=seed).T.cov(correction=0)


def vae(seed=3):
    parts = normals(SIZE, LATENTS, seed=seed), 0.5 * normals(1, seed=seed + 1)[0]
    return LinearVAE(*parts, normals(LATENTS, SIZE, seed=seed + 2), normals(LATENTS, seed=seed + 3))


def with_best_encoder(model):
    return LinearVAE(model.weight, model.noise_variance.log(), *linear_vae.best_encoder(model))


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def graded():
    """Variances close enough that other axes can be taken for the principal ones."""
    turn = torch.linalg.qr(normals(SIZE, SIZE, seed=7)).Q
    return turn @ torch.diag(torch.tensor([5, 4, 3, 1, 0.5]).double()) @ turn.T


def bound_of_flat(theta):
    sizes = [part.numel() for part in vae()]
    parts = [p.reshape(q.shape) for p, q in zip(theta.split(sizes), vae(), strict=True)]
    return linear_vae.elbo(LinearVAE(*parts), graded())


def bends(model):
    """Slopes and curvatures of the bound at a decoder with its best encoder."""
    theta = flat(with_best_encoder(model))
    slope = torch.autograd.functional.jacobian(bound_of_flat, theta)
    hessian = torch.autograd.functional.hessian(bound_of_flat, theta)
    return slope, torch.linalg.eigvalsh(hessian)


def stationary(chosen):
    """The decoder on some principal axes, whose noise is the mean variance of the others."""
    values, directions = ppca.principal(graded(), LATENTS)
    others = [i for i in range(SIZE) if i not in chosen]
    noise_variance = values[others].mean()
    lengths = (values[chosen] - noise_variance).sqrt()
    return Ppca(directions[:, chosen] * lengths, noise_variance)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_bound_and_gap_add_up_to_the_likelihood(seed):
    given_vae, given_data = vae(seed), covariance(seed)
    found = linear_vae.elbo(given_vae, given_data) + linear_vae.gap(given_vae, given_data)
    exact = ppca.log_likelihood(linear_vae.decoder(given_vae), given_data)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_the_gap_is_the_mean_of_torchs_divergences():
    x, given_vae = data(), vae()
    mean, spread = ppca.posterior(linear_vae.decoder(given_vae), x)
    truth = distributions.MultivariateNormal(mean, spread)
    q = distributions.MultivariateNormal(
        x @ given_vae.encoder.T, torch.diag(given_vae.log_variance.exp())
    )
    exact = distributions.kl_divergence(q, truth).mean()
    torch.testing.assert_close(linear_vae.gap(given_vae, covariance()), exact)


def test_the_bound_is_the_mean_of_both_terms_over_codes():
    """The bound is quadratic in the noise; these codes have its first two moments exactly."""
    x, given_vae = data(), vae()
    noise = LATENTS**0.5 * torch.cat([torch.eye(LATENTS), -torch.eye(LATENTS)]).double()
    q = distributions.Normal(x @ given_vae.encoder.T, (given_vae.log_variance / 2).exp())
    z = q.mean + q.stddev * noise[:, None]
    pixels = distributions.Normal(z @ given_vae.weight.T, (given_vae.log_noise / 2).exp())
    standard = distributions.Normal(torch.zeros(()).double(), 1.0)
    kl = distributions.kl_divergence(q, standard).sum(1)
    exact = (pixels.log_prob(x).sum(-1) - kl).mean()
    torch.testing.assert_close(linear_vae.elbo(given_vae, covariance()), exact)


def test_the_best_encoder_is_a_maximum_for_its_decoder():
    given_data, decoder = covariance(), linear_vae.decoder(vae())
    best = with_best_encoder(decoder)
    encoder, log_variance = (p.clone().requires_grad_() for p in best[2:])
    free = best._replace(encoder=encoder, log_variance=log_variance)
    for slope in torch.autograd.grad(linear_vae.elbo(free, given_data), [encoder, log_variance]):
        assert slope.abs().max() < 1e-10
    for seed in range(20):
        other = best._replace(
            encoder=best.encoder + 0.05 * normals(LATENTS, SIZE, seed=seed),
            log_variance=best.log_variance + 0.05 * normals(LATENTS, seed=seed + 1),
        )
        assert linear_vae.elbo(other, given_data) < linear_vae.elbo(best, given_data)


def test_a_diagonal_encoder_has_a_gap_unless_the_columns_are_orthogonal():
    oblique = with_best_encoder(linear_vae.decoder(vae()))
    assert linear_vae.gap(oblique, covariance()).item() > 0.01
    spread = ppca.posterior(linear_vae.decoder(oblique), data())[1]
    assert (oblique.log_variance.exp() < spread.diagonal()).all()
    straight = with_best_encoder(ppca.maximum_likelihood(covariance(), LATENTS))
    assert linear_vae.gap(straight, covariance()).item() == pytest.approx(0, abs=1e-12)


def test_a_rotated_optimum_is_as_likely_and_has_a_lower_bound():
    given_data = covariance()
    best = ppca.maximum_likelihood(given_data, LATENTS)
    angle = torch.tensor(0.6).double()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    turned = Ppca(best.weight @ turn, best.noise_variance)
    likelihoods = [ppca.log_likelihood(m, given_data) for m in (best, turned)]
    torch.testing.assert_close(*likelihoods, rtol=1e-12, atol=1e-12)
    bounds = [linear_vae.elbo(with_best_encoder(m), given_data) for m in (best, turned)]
    assert bounds[0] - bounds[1] > 0.01
    torch.testing.assert_close(bounds[0], likelihoods[0], rtol=1e-12, atol=1e-12)


def test_the_optimum_of_the_likelihood_is_a_maximum_of_the_bound():
    slope, curvatures = bends(ppca.maximum_likelihood(graded(), LATENTS))
    assert slope.abs().max() < 1e-9
    assert curvatures.max() < -1e-3


@pytest.mark.parametrize("chosen", [[0, 2], [1, 2]])
def test_other_axes_are_saddles_of_the_bound(chosen):
    slope, curvatures = bends(stationary(chosen))
    assert slope.abs().max() < 1e-9
    assert curvatures.max() > 1e-3
    assert curvatures.min() < -1e-3


def test_the_saddles_are_built_as_the_optimum_is():
    best, ours = ppca.maximum_likelihood(graded(), LATENTS), stationary([0, 1])
    for a, b in zip(best, ours, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("seed", range(4))
def test_training_from_a_random_start_finds_the_optimum(seed):
    given_data = 3 * covariance()
    found = linear_vae.fit(given_data, LATENTS, torch.Generator().manual_seed(seed))
    best = ppca.maximum_likelihood(given_data, LATENTS)
    scale = given_data.trace()
    error = found.weight @ found.weight.T - best.weight @ best.weight.T
    assert error.abs().max() < 1e-6 * scale
    assert abs(found.log_noise.exp() - best.noise_variance) < 1e-6 * scale
    assert linear_vae.gap(found, given_data) < 1e-9
    # A diagonal encoder chooses the axes as well: the columns come out orthogonal.
    squares = found.weight.T @ found.weight
    assert squares[0, 1].abs() < 1e-5 * squares.trace()


def test_training_starts_from_the_generator_and_ends_after_its_steps():
    starts = [
        linear_vae.fit(covariance().float(), LATENTS, torch.Generator().manual_seed(seed), steps=1)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0].weight, starts[1].weight)
    assert not torch.equal(starts[0].weight, starts[2].weight)
    assert {part.dtype for part in starts[0]} == {torch.float64}
    assert not any(part.requires_grad for part in starts[0])
    best = ppca.log_likelihood(ppca.maximum_likelihood(covariance(), LATENTS), covariance())
    assert best - linear_vae.elbo(starts[0], covariance()) > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_vae.elbo(vae(), covariance()[:4]), "^covariance: must be square"),
        (lambda: linear_vae.gap(vae(), covariance() / 0), "^covariance: must be finite"),
        (lambda: linear_vae.elbo(vae(), covariance()[:4, :4]), "^weight: must be .4, k"),
        (lambda: linear_vae.gap(vae()._replace(encoder=vae().weight), covariance()), "^encoder: "),
        (
            lambda: linear_vae.elbo(vae()._replace(log_variance=normals(1)), covariance()),
            "^log_variance: must be .2",
        ),
        (
            lambda: linear_vae.elbo(vae()._replace(encoder=normals(2, 5) / 0), covariance()),
            "^encoder: must be finite",
        ),
        (
            lambda: linear_vae.elbo(vae()._replace(log_noise=normals(1)[0] / 0), covariance()),
            "^noise_variance: must be positive",
        ),
        (
            lambda: linear_vae.best_encoder(Ppca(vae().weight, torch.zeros(()))),
            "^noise_variance: must be positive",
        ),
        (lambda: linear_vae.fit(covariance(), 5, torch.Generator()), "^k: must be less"),
        (lambda: linear_vae.fit(0 * covariance(), 2, torch.Generator()), "^covariance: must leave"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
