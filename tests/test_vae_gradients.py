"""Each loss's backward pass against the exact gradient of a latent that can be enumerated."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from gradbook import gumbel, vae, vae_gradients
from gradbook.categorical import all_one_hots

LATENTS, CLASSES, IMAGES, REPEATS = 2, 3, 3, 4000
UNBIASED = {
    "score_function": lambda m, x, e: vae_gradients.score_function(m, x, e, 12.0),
    "no_baseline": lambda m, x, e: vae_gradients.score_function(m, x, e, 0.0),
    "leave_one_out_2": lambda m, x, e: vae_gradients.leave_one_out(m, x, two(e, 2)),
    "leave_one_out_3": lambda m, x, e: vae_gradients.leave_one_out(m, x, two(e, 3)),
}
HARD = {
    **UNBIASED,
    "straight_through": lambda m, x, e: vae_gradients.straight_through(m, x, e, 1.0),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two(first, draws):
    """Noise of several draws, the first of them given."""
    others = gumbel.gumbel_noise((draws - 1, *first.shape), generator(99), torch.float64)
    return torch.cat([first[None], others])


class Small(torch.nn.Module):
    """An encoder and a decoder of 4x4 images: the losses ask for no particular size."""

    def __init__(self):
        super().__init__()
        size = LATENTS * CLASSES
        self.encoder = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, size), torch.nn.Unflatten(1, (LATENTS, -1))
        )
        self.decoder = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(size, 5),
            torch.nn.Tanh(),
            torch.nn.Linear(5, 16),
            torch.nn.Unflatten(1, (4, 4)),
        )


@pytest.fixture(scope="module")
def model():
    built = Small().double()
    drawn = generator(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) / 2)
        built.decoder[1].weight *= 3
    return built


@pytest.fixture(scope="module")
def images():
    return torch.rand(IMAGES, 4, 4, generator=generator(2)).round().double()


def noise(*shape, seed=4):
    shape = shape or (IMAGES, LATENTS, CLASSES)
    return gumbel.gumbel_noise(shape, generator(seed), torch.float64)


def exact_gradients(model, images):
    return vae_gradients.logit_gradients(vae_gradients.exact, model, images)


def draws_of(loss, model, images):
    """Independent gradients in each image's logits, [repeats, images, latents, classes]."""
    drawn = noise(REPEATS * IMAGES, LATENTS, CLASSES)
    many = images.repeat(REPEATS, 1, 1)
    rows = vae_gradients.logit_gradients(lambda m, x: loss(m, x, drawn), model, many)
    return rows.unflatten(0, (REPEATS, IMAGES))


def largest_z(draws, exact):
    return ((draws.mean(0) - exact) * math.sqrt(len(draws)) / draws.std(0)).abs().max().item()


def test_exact_gradient_is_the_covariance_of_class_and_loss(model, images):
    """d E[f] / d logit_c = p_c (E[f | class c] - E[f]), and KL's is p_c (log p_c - E[log p])."""
    codes = all_one_hots(LATENTS, CLASSES).double()
    q = model.encoder(images).softmax(-1)
    values = vae.log_likelihood(model.decoder(codes)[:, None], images)
    weights = (q * codes[:, None]).sum(-1).prod(-1)
    mean = (weights * values).sum(0)[:, None, None]
    share = torch.einsum("cn,cn,clk->nlk", weights, values, codes)
    kl = q * (q.log() - (q * q.log()).sum(-1, keepdim=True))
    exact = -(share - q * mean) + kl
    torch.testing.assert_close(exact_gradients(model, images), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", UNBIASED)
def test_score_function_gradients_are_unbiased(name, model, images):
    draws = draws_of(UNBIASED[name], model, images)
    assert (draws.std(0) > 1e-4).all()
    assert largest_z(draws, exact_gradients(model, images)) <= 4.5


@pytest.mark.parametrize("loss", [vae_gradients.relaxed, vae_gradients.straight_through])
def test_the_same_test_finds_the_bias_of_the_relaxed_gradients(loss, model, images):
    draws = draws_of(partial(loss, temperature=2.0), model, images)
    assert largest_z(draws, exact_gradients(model, images)) > 9


def test_the_relaxed_gradient_is_that_of_the_relaxed_loss(model, images):
    drawn, tau = noise(), 0.4
    logits = model.encoder(images).detach().requires_grad_()
    codes = ((logits + drawn) / tau).softmax(-1)
    log_p = logits.log_softmax(-1)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(
        model.decoder(codes), images, reduction="sum"
    )
    kl = (log_p.exp() * log_p).sum() + IMAGES * LATENTS * math.log(CLASSES)
    value = vae_gradients.relaxed(model, images, drawn, tau)
    torch.testing.assert_close(value, (cross + kl) / IMAGES, rtol=1e-12, atol=0)
    (exact,) = torch.autograd.grad(cross + kl, logits)
    ours = vae_gradients.logit_gradients(
        lambda m, x: vae_gradients.relaxed(m, x, drawn, tau), model, images
    )
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_straight_through_sends_the_hard_codes_slope_through_the_relaxed_code(model, images):
    drawn, tau = noise(), 0.4
    logits = model.encoder(images).detach().requires_grad_()
    codes = vae.hard_codes(logits, drawn).requires_grad_()
    likelihood = vae.log_likelihood(model.decoder(codes), images).sum()
    (slope,) = torch.autograd.grad(-likelihood, codes)
    soft = ((logits + drawn) / tau).softmax(-1)
    kl = vae.categorical_kl(logits).sum()
    (exact,) = torch.autograd.grad((soft * slope).sum() + kl, logits)
    ours = vae_gradients.logit_gradients(
        lambda m, x: vae_gradients.straight_through(m, x, drawn, tau), model, images
    )
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_a_cold_relaxed_loss_is_the_hard_one(model, images):
    hard = -vae.sampled_elbo(model, images, noise()).mean()
    cold = vae_gradients.relaxed(model, images, noise(), 1e-4)
    torch.testing.assert_close(cold, hard, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", HARD)
def test_hard_losses_have_the_value_of_the_sampled_bound(name, model, images):
    draws = int(name[-1]) if name.startswith("leave") else 1
    every = two(noise(), draws)
    exact = -sum(vae.sampled_elbo(model, images, drawn).mean() for drawn in every) / draws
    value = HARD[name](model, images, noise())
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", HARD)
def test_hard_losses_give_the_decoder_the_slope_at_the_hard_codes(name, model, images):
    """It is unbiased, because the decoder's weights do not change which codes are drawn."""
    draws = int(name[-1]) if name.startswith("leave") else 1
    codes = vae.hard_codes(model.encoder(images), two(noise(), draws))
    losses = [-vae.log_likelihood(model.decoder(c), images).mean() for c in codes]
    weights = list(model.decoder.parameters())
    exact = torch.autograd.grad(sum(losses) / draws, weights)
    ours = torch.autograd.grad(HARD[name](model, images, noise()), weights)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_leave_one_out_does_not_see_what_no_code_changes(model, images):
    """The lower half is black whatever the code: its pixels move the loss, and no gradient."""

    def half_blind(codes):
        pixels = model.decoder(codes)
        return torch.cat([pixels[:, :2], torch.full_like(pixels[:, 2:], -30.0)], 1)

    given = model.encoder(images).detach()
    half = SimpleNamespace(encoder=lambda _: given, decoder=half_blind)
    drawn = noise(4, IMAGES, LATENTS, CLASSES)
    rows = [
        vae_gradients.logit_gradients(
            lambda m, x: vae_gradients.leave_one_out(m, x, drawn), half, batch
        )
        for batch in (images, torch.cat([images[:, :2], 1 - images[:, 2:]], 1))
    ]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-9)


def test_leave_one_out_of_two_draws_is_half_the_difference(model, images):
    drawn = noise(2, IMAGES, LATENTS, CLASSES)
    logits = model.encoder(images).detach().requires_grad_()
    codes = vae.hard_codes(logits.detach(), drawn)
    with torch.no_grad():
        first, second = (-vae.log_likelihood(model.decoder(c), images) for c in codes)
    log_q = (logits.log_softmax(-1) * codes).sum((-2, -1))
    exact = torch.autograd.grad(
        (0.5 * (first - second) * (log_q[0] - log_q[1])).sum() + vae.categorical_kl(logits).sum(),
        logits,
    )[0]
    ours = vae_gradients.logit_gradients(
        lambda m, x: vae_gradients.leave_one_out(m, x, drawn), model, images
    )
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_a_baseline_per_image_is_each_images_own(model, images):
    baseline = torch.tensor([0.0, 12.0, 90.0], dtype=torch.float64)
    whole = vae_gradients.logit_gradients(
        lambda m, x: vae_gradients.score_function(m, x, noise(), baseline), model, images
    )
    for i in range(IMAGES):
        one = vae_gradients.logit_gradients(
            lambda m, x, i=i: vae_gradients.score_function(
                m, x, noise()[i : i + 1], baseline[i].item()
            ),
            model,
            images[i : i + 1],
        )
        torch.testing.assert_close(whole[i], one[0], rtol=1e-9, atol=1e-9)


def test_logit_gradients_are_those_of_each_image_alone(model, images):
    pair = torch.stack([images[0], images[2], images[0]])
    whole = exact_gradients(model, images)
    torch.testing.assert_close(exact_gradients(model, pair), whole[[0, 2, 0]])


def test_logit_gradients_leave_no_trace_in_the_model(model, images):
    exact_gradients(model, images)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_schedule_is_the_articles():
    assert vae_gradients.temperature_schedule(0) == 1
    after = [vae_gradients.temperature_schedule(600 * epoch) for epoch in (1, 5, 30)]
    assert [f"{tau:.3f}" for tau in after] == ["0.553", "0.059", "0.010"]
    assert vae_gradients.temperature_schedule(1) == pytest.approx(0.99901, abs=1e-12)


def test_a_moving_average_weights_the_past_by_powers():
    average, values = 7.0, [3.0, -1.0, 4.0]
    for value in values:
        average = vae_gradients.moving_average(average, value, 0.8)
    assert average == pytest.approx(0.512 * 7 + 0.2 * (0.64 * 3 - 0.8 + 4), rel=1e-12)
    assert vae_gradients.moving_average(1.0, 2.0) == pytest.approx(1.1, rel=1e-12)


def test_bad_input_is_named(model, images):
    short = noise(1, LATENTS, CLASSES)
    for loss in (
        lambda m, x, e: vae_gradients.relaxed(m, x, e, 1.0),
        lambda m, x, e: vae_gradients.straight_through(m, x, e, 1.0),
        lambda m, x, e: vae_gradients.score_function(m, x, e, 0.0),
        lambda m, x, e: vae_gradients.leave_one_out(m, x, torch.stack([e, e])),
    ):
        with pytest.raises(ValueError, match="noise: must be"):
            loss(model, images, short)
        with pytest.raises(ValueError, match="images: must be from 0 to 1"):
            loss(model, images + 0.5, noise())
        with pytest.raises(ValueError, match="images: must not be empty"):
            loss(model, images[:0], noise()[:0])
        with pytest.raises(ValueError, match="noise: "):
            loss(model, images, noise() * math.nan)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature: "):
            vae_gradients.relaxed(model, images, noise(), temperature)
    with pytest.raises(ValueError, match="noise: .* draws at least 2"):
        vae_gradients.leave_one_out(model, images, noise()[None])
    with pytest.raises(ValueError, match="noise: .* draws at least 2"):
        vae_gradients.leave_one_out(model, images, noise())
    with pytest.raises(ValueError, match="baseline: "):
        vae_gradients.score_function(model, images, noise(), math.nan)
    for shape in ((len(images), 1), (1,), (2, len(images)), (len(images) + 1,)):
        with pytest.raises(ValueError, match="baseline: must be a scalar or"):
            vae_gradients.score_function(model, images, noise(), torch.zeros(shape))
    with pytest.raises(ValueError, match="images: must not be empty"):
        vae_gradients.exact(model, images[:0])
    with pytest.raises(ValueError, match="step: "):
        vae_gradients.temperature_schedule(-1)
    for decay in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match="decay: "):
            vae_gradients.moving_average(0.0, 1.0, decay)
