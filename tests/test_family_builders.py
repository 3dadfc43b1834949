"""Four families: each is what its module says, on the noise of the generator alone."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import softplus

from gradbook import families, family_builders, flows, gan, nade, normal_vae
from gradbook.bits import all_bits

PIXELS, WIDTH, LATENTS, DRAWS, LAYERS = 4, 5, 3, 50, 2
BUILDERS = {
    "autoregressive": family_builders.autoregressive,
    "latent_variable": partial(family_builders.latent_variable, latents=LATENTS, draws=DRAWS),
    "flow": partial(family_builders.flow, layers=LAYERS, draws=DRAWS),
    "adversarial": partial(
        family_builders.adversarial, latents=LATENTS, temperature=0.5, penalty=2.0
    ),
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(name):
    """A model away from its start, where biases are zero and the flow is the identity."""
    model = BUILDERS[name](PIXELS, WIDTH, generator())
    noise = generator(1)
    with torch.no_grad():
        for player in model.players:
            for part in player.parameters:
                part += 0.4 * torch.randn(part.shape, generator=noise)
    return model


def bits(n=6):
    return torch.rand(n, PIXELS, generator=generator(2)).round()


def everything():
    return all_bits(PIXELS).float()


def frequencies(model, draws):
    """How often each of the 16 pictures is drawn."""
    with torch.no_grad():
        x = model.sample(draws, generator(3))
    assert x.shape == (draws, PIXELS)
    found = (x[:, None] == everything()).all(2).sum(0)
    assert found.sum() == draws
    return found / draws


def loss_of(model, player, x, seed=5):
    return model.players[player].loss(x, generator(seed))


def slopes(loss, parameters):
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("autoregressive", 2 * 4 * 5 + 5 + 4),
        ("latent_variable", (4 + 1) * 5 + 2 * (5 + 1) * 3 + (3 + 1) * 5 + (5 + 1) * 4),
        ("flow", 2 * ((2 + 1) * 5 + (5 + 1) * 2 * 2)),
        (
            "adversarial",
            (4 + 1) * 5 + (5 + 1) * 5 + (5 + 1) + (3 + 1) * 5 + (5 + 1) * 5 + (5 + 1) * 4,
        ),
    ],
)
def test_every_network_that_is_trained_counts(name, count):
    model = BUILDERS[name](PIXELS, WIDTH, generator())
    assert families.parameter_count(model) == count
    for player in model.players:
        assert all(part.requires_grad and part.is_leaf for part in player.parameters)
        assert {part.dtype for part in player.parameters} == {torch.float32}


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_draws_and_losses_come_from_the_generators_alone(name):
    state = torch.get_rng_state()
    model, again, other = (BUILDERS[name](PIXELS, WIDTH, generator(s)) for s in (7, 7, 8))
    x = bits()
    for i in range(len(model.players)):
        assert torch.equal(loss_of(model, i, x), loss_of(again, i, x))
    assert torch.equal(model.sample(9, generator(4)), again.sample(9, generator(4)))
    assert not torch.equal(model.sample(9, generator(4)), model.sample(9, generator(5)))
    first = [m.players[0].parameters[0] for m in (model, other)]
    assert not torch.equal(*first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_step_of_training_lowers_each_loss(name):
    """On the same noise, along the slope; a player whose weights were not wired in would stay."""
    model, x = moved(name), bits()
    for i, player in enumerate(model.players):
        before = loss_of(model, i, x)
        found = slopes(before, player.parameters)
        assert all(slope is not None for slope in found)
        if name == "adversarial" and i == 1:
            continue  # hard bits: the loss itself jumps
        with torch.no_grad():
            for part, slope in zip(player.parameters, found, strict=True):
                part -= 1e-3 * slope
        assert loss_of(model, i, x) < before


def test_the_autoregressive_log_probability_is_exact_and_its_draws_follow_it():
    model = moved("autoregressive")
    law = model.log_prob(everything(), generator()).exp()
    assert law.sum().item() == pytest.approx(1, abs=1e-6)
    theta = nade.Nade(*model.players[0].parameters)
    expected = nade.log_prob(nade.nade_logits(theta, bits()), bits())
    assert torch.equal(model.log_prob(bits(), generator()), expected)
    assert loss_of(model, 0, bits()).item() == pytest.approx(-expected.mean().item(), rel=1e-6)
    assert torch.equal(model.features(bits()), nade.nade_features(theta, bits()))
    error = (law * (1 - law) / 20_000).sqrt()
    assert ((frequencies(model, 20_000) - law).abs() <= 4.5 * error).all()


def vae_of(model):
    """The VAE with a model's weights."""
    network = normal_vae.build(PIXELS, LATENTS, WIDTH, generator())
    for ours, theirs in zip(network.parameters(), model.players[0].parameters, strict=True):
        ours.data.copy_(theirs.data)
    return network


def test_the_vae_is_trained_by_the_elbo_and_measured_by_the_tighter_bound():
    model = moved("latent_variable")
    network, x = vae_of(model), bits()
    noise = torch.randn(6, LATENTS, generator=generator(5))
    elbo = normal_vae.elbo(network, x, noise).mean()
    assert loss_of(model, 0, x).item() == pytest.approx(-elbo.item(), rel=1e-6)
    noise = torch.randn(DRAWS, 6, LATENTS, generator=generator(5))
    weights = normal_vae.log_weights(network, x, noise)
    expected = weights.logsumexp(0) - math.log(DRAWS)
    torch.testing.assert_close(model.log_prob(x, generator(5)), expected)
    assert torch.equal(model.features(x), network.encoder(x).mean)


def test_the_vaes_draws_follow_the_mean_over_codes_of_its_pixels():
    model = moved("latent_variable")
    network = vae_of(model)
    codes = torch.randn(4_000, 1, LATENTS, generator=generator(6))
    with torch.no_grad():
        on = network.decoder(codes).sigmoid()
    given = torch.where(everything() > 0, on, 1 - on).prod(2)
    law, spread = given.mean(0), given.std(0) / math.sqrt(4_000)
    error = (law * (1 - law) / 20_000 + spread.square()).sqrt()
    assert ((frequencies(model, 20_000) - law).abs() <= 4.5 * error).all()


def flow_of(model):
    """The flow with a model's weights."""
    network = flows.build(PIXELS, WIDTH, LAYERS, generator())
    for ours, theirs in zip(network.parameters(), model.players[0].parameters, strict=True):
        ours.data.copy_(theirs.data)
    return network


def test_the_flow_starts_as_fair_coins():
    model = BUILDERS["flow"](PIXELS, WIDTH, generator())
    fair = torch.full((6,), -PIXELS * math.log(2))
    torch.testing.assert_close(model.log_prob(bits(), generator()), fair)


def test_the_flow_is_measured_by_the_mean_of_its_bounds():
    model = moved("flow")
    network, x, drawn = flow_of(model), bits(), generator(5)
    rows = [
        flows.bits_log_prob_bound(network, x, torch.rand(6, PIXELS, generator=drawn))
        for _ in range(DRAWS)
    ]
    assert loss_of(model, 0, x).item() == pytest.approx(-rows[0].mean().item(), rel=1e-6)
    expected = torch.stack(rows).mean(0)
    torch.testing.assert_close(model.log_prob(x, generator(5)), expected)


def test_the_flows_draws_follow_the_law_that_it_gives_to_pictures():
    model = moved("flow")
    network, drawn = flow_of(model), generator(6)
    x = everything().repeat(2_000, 1)
    with torch.no_grad():
        bound = flows.bits_log_prob_bound(network, x, torch.rand(x.shape, generator=drawn))
    weights = bound.exp().unflatten(0, (2_000, 16))
    law, spread = weights.mean(0), weights.std(0) / math.sqrt(2_000)
    error = (law * (1 - law) / 20_000 + spread.square()).sqrt()
    assert ((frequencies(model, 20_000) - law).abs() <= 4.5 * error).all()


def test_the_flows_features_are_the_noise_of_the_middle_of_the_cell():
    model = moved("flow")
    network, x = flow_of(model), bits()
    quarters = torch.where(x > 0, 0.75, 0.25)
    expected = flows.to_noise(network, torch.special.ndtri(quarters))[0]
    torch.testing.assert_close(model.features(x), expected)


def pair_of(model):
    """The generator and the discriminator with a model's weights."""
    pair = gan.build(PIXELS, LATENTS, WIDTH, generator())
    for network, player in zip(reversed(pair), model.players, strict=True):
        for ours, theirs in zip(network.parameters(), player.parameters, strict=True):
            ours.data.copy_(theirs.data)
    return pair


def drawn_by(painter, count, seed):
    """Logits of a count of draws, and the draws."""
    noise = generator(seed)
    logits = painter(torch.randn(count, LATENTS, generator=noise))
    uniforms = torch.rand(count, PIXELS, generator=noise)
    return logits, uniforms, (uniforms.logit() + logits > 0).float()


def test_the_discriminator_plays_against_the_data_and_the_draws_with_half_a_penalty():
    model, x = moved("adversarial"), bits()
    painter, critic = pair_of(model)
    fake = drawn_by(painter, 6, 5)[2]
    game = softplus(-critic(x)).mean() + softplus(critic(fake)).mean()
    steep = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(steep).sum(), steep)
    expected = game + 0.5 * 2.0 * slope.square().sum(1).mean()
    assert loss_of(model, 0, x).item() == pytest.approx(expected.item(), rel=1e-5)
    found = slopes(loss_of(model, 0, x), model.players[1].parameters)
    assert all(slope is None for slope in found)


def test_the_generator_raises_the_logit_of_its_draws_through_soft_bits():
    model, x = moved("adversarial"), bits()
    painter, critic = pair_of(model)
    logits, uniforms, fake = drawn_by(painter, 6, 5)
    loss = softplus(-critic(fake)).mean()
    assert loss_of(model, 1, x).item() == pytest.approx(loss.item(), rel=1e-6)
    soft = ((logits + uniforms.logit()) / 0.5).sigmoid()
    fake = fake.requires_grad_()
    (toward,) = torch.autograd.grad(softplus(-critic(fake)).mean(), fake)
    expected = torch.autograd.grad(soft, tuple(painter.parameters()), toward)
    found = slopes(loss_of(model, 1, x), model.players[1].parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_gan_draws_its_bits_and_has_no_log_probability():
    model = moved("adversarial")
    painter, critic = pair_of(model)
    with torch.no_grad():
        assert torch.equal(model.sample(9, generator(5)), drawn_by(painter, 9, 5)[2])
    assert torch.equal(model.features(bits()), gan.features(critic, bits()))
    assert model.log_prob is None
