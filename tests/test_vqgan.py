"""The three kinds of steps of a VQGAN, against autograd and steps written out."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from gradbook import adversarial, codebooks, vq_vae, vqgan, vqgan_losses
from gradbook.quantizers import EmaCodebook, LossCodebook
from gradbook.vqgan import Players, ReversedCodebook

K, D = 5, 2
ERROR = partial(vqgan_losses.squared_loss, variance=0.1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def images(n=6, seed=1):
    return torch.rand(n, 3, 8, 8, generator=generator(seed), dtype=torch.float64)


def players(kind=LossCodebook, seed=0):
    """Small players in float64, all of whose parts are random."""
    quantizer = kind(normals(K, D, seed=seed + 2))
    model = vq_vae.build(3, 4, D, 1, quantizer, generator(seed), 1).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        critic = critic.append(nn.Conv2d(4, 1, 2)).double()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (model, critic)]
    return Players(model, critic, *optimizers)


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def close(a, b):
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def moved(found, start, rate=0.1):
    """The gradients that a step of plain descent followed."""
    pairs = zip(start.parameters(), found.parameters(), strict=True)
    return [(before - after).detach() / rate for before, after in pairs]


def test_the_reversed_codebook_pulls_the_other_way():
    z, codebook = normals(7, D).requires_grad_(), normals(K, D, seed=3)
    slopes = {}
    for kind in (LossCodebook, ReversedCodebook):
        quantizer = kind(codebook, 0.25)
        found = quantizer(z)
        slopes[kind] = torch.autograd.grad(found.loss, (z, quantizer.codebook))
        error = (z - quantizer.codebook[found.indices]).square().mean()
        assert found.loss.item() == pytest.approx(1.25 * error.item(), rel=1e-12)
    right, wrong = slopes[LossCodebook], slopes[ReversedCodebook]
    torch.testing.assert_close(wrong[0], 4 * right[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(wrong[1], right[1] / 4, rtol=1e-12, atol=0)


def test_the_reversed_loss_is_that_of_the_codebooks():
    z, z_q = normals(4, D), normals(4, D, seed=2)
    found = ReversedCodebook(normals(K, D), 0.3).loss(z, z_q)
    assert torch.equal(found, codebooks.reversed_vq_loss(z, z_q, 0.3))


def test_a_plain_step_descends_the_sum_of_both_terms():
    start, x = players(), images()
    game = copy.deepcopy(start)
    found = vqgan.plain_step(game, x, generator(), ERROR)
    output = start.model(x)
    terms = {"reconstruction": ERROR(output.images, x), "codebook": output.quantized.loss}
    assert found == {name: pytest.approx(term.item(), rel=1e-12) for name, term in terms.items()}
    slopes = torch.autograd.grad(sum(terms.values()), list(start.model.parameters()))
    for slope, move in zip(slopes, moved(game.model, start.model), strict=True):
        torch.testing.assert_close(move, slope, rtol=1e-9, atol=1e-13)
    assert same(game.critic, start.critic)


def test_what_watches_moves_the_critic_alone_and_not_the_autoencoder_otherwise():
    plain, watched = players(), players()
    x = images()
    expected = vqgan.plain_step(plain, x, generator(), ERROR)
    found = vqgan.watched_step(watched, x, generator(), ERROR)
    assert same(plain.model, watched.model)
    assert {name: found[name] for name in expected} == expected
    assert not same(plain.critic, watched.critic)
    # The critic sees the reconstructions from before the autoencoder's step.
    byhand = players()
    scores = vqgan.critic_step(byhand, x, byhand.model(x).images)
    close(byhand.critic, watched.critic)
    assert {name: found[name] for name in scores} == scores


def test_the_critic_descends_the_hinge_loss_and_moves_nothing_else():
    start, real, fake = players(), images(), images(seed=2).requires_grad_()
    game = copy.deepcopy(start)
    found = vqgan.critic_step(game, real, fake)
    scores = start.critic(torch.cat([real, fake])).split(6)
    loss = adversarial.discriminator_hinge(*scores)
    slopes = torch.autograd.grad(loss, list(start.critic.parameters()))
    for slope, move in zip(slopes, moved(game.critic, start.critic), strict=True):
        torch.testing.assert_close(move, slope, rtol=1e-9, atol=1e-13)
    assert fake.grad is None
    assert same(game.model, start.model)
    assert found["critic"] == pytest.approx(loss.item(), rel=1e-12)
    means = [score.mean().item() for score in scores]
    assert [found["real"], found["fake"]] == pytest.approx(means, rel=1e-12)


def test_one_pass_sees_a_contrast_that_two_passes_normalize_away():
    """Images of half the contrast: a normalized pass of their own makes them the originals."""
    critic = nn.Sequential(nn.BatchNorm2d(3, eps=1e-30), nn.Flatten()).double()
    real, fake = images(), images() / 2
    torch.testing.assert_close(critic(real), critic(fake))
    found = vqgan.scores(critic, real, fake)
    assert [len(score) for score in found] == [6, 6]
    both = torch.cat([real, fake])
    mean, scale = both.mean((0, 2, 3)), both.std((0, 2, 3), correction=0)
    expected = (both - mean[:, None, None]) / scale[:, None, None]
    torch.testing.assert_close(torch.cat(found), expected.flatten(1))
    spread = [score.unflatten(1, (3, -1)).std((0, 2)) for score in found]
    torch.testing.assert_close(spread[0], 2 * spread[1])


def test_a_critics_step_forgets_older_gradients():
    clean, dirty = players(), players()
    for parameter in dirty.critic.parameters():
        parameter.grad = torch.ones_like(parameter)
    for parameter in dirty.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for game in (clean, dirty):
        vqgan.game_step(game, images(), generator(), ERROR)
    assert same(clean.critic, dirty.critic)
    assert same(clean.model, dirty.model)


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_a_step_of_the_game_is_the_sum_of_three_terms_then_the_critic(share):
    start, x = players(), images()
    game = copy.deepcopy(start)
    found = vqgan.game_step(game, x, generator(), ERROR, share)
    byhand = copy.deepcopy(start)
    output = byhand.model(x)
    reconstruction = ERROR(output.images, x)
    push = adversarial.generator_loss(byhand.critic(torch.cat([x, output.images]))[6:])
    last = byhand.model.decoder.last.weight
    weight = adversarial.adaptive_weight(reconstruction, push, last, share=share)
    total = reconstruction + output.quantized.loss + weight * push
    slopes = torch.autograd.grad(total, list(byhand.model.parameters()))
    for slope, move in zip(slopes, moved(game.model, start.model), strict=True):
        torch.testing.assert_close(move, slope, rtol=1e-9, atol=1e-12)
    vqgan.critic_step(byhand, x, output.images)
    close(game.critic, byhand.critic)
    for name, value in {
        "reconstruction": reconstruction,
        "codebook": output.quantized.loss,
        "adversarial": push,
        "weight": weight,
    }.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-12)
    assert set(found) == {
        *("reconstruction", "codebook", "adversarial", "weight", "pull", "push"),
        *("critic", "real", "fake"),
    }


def test_the_traced_norms_are_those_in_the_last_layer_and_balance():
    start, x = players(), images()
    found = vqgan.game_step(copy.deepcopy(start), x, generator(), ERROR)
    output = start.model(x)
    last = start.model.decoder.last.weight
    fake = start.critic(torch.cat([x, output.images]))[6:]
    terms = ERROR(output.images, x), -fake.mean()
    norms = [torch.autograd.grad(t, last, retain_graph=True)[0].norm().item() for t in terms]
    assert [found["pull"], found["push"]] == pytest.approx(norms, rel=1e-12)
    left, right = found["weight"] * found["push"], 0.8 * found["pull"]
    assert left == pytest.approx(right * norms[1] / (norms[1] + 1e-4), rel=1e-12)


@pytest.mark.parametrize("step", [vqgan.plain_step, vqgan.watched_step, vqgan.game_step])
def test_every_step_updates_the_quantizer_with_its_own_lookup(step):
    start, x = players(EmaCodebook), images()
    game = copy.deepcopy(start)
    step(game, x, generator(), ERROR)
    output = start.model(x)
    rows = output.vectors.detach().flatten(0, 2)
    start.model.quantizer.update(rows, output.quantized.indices, generator())
    close(game.model.quantizer, start.model.quantizer)


def test_what_needs_no_gradient_is_not_trained():
    start = players()
    start.model.encoder.requires_grad_(False)
    game = copy.deepcopy(start)
    vqgan.game_step(game, images(), generator(), ERROR)
    assert same(game.model.encoder, start.model.encoder)
    assert not same(game.model.decoder, start.model.decoder)


@pytest.mark.parametrize("watching", [0, 2, 6])
def test_a_plan_has_the_kinds_in_their_order(watching):
    kinds = {0: vqgan.plain_step, 6 - watching: vqgan.watched_step, 6: vqgan.game_step}
    found = vqgan.against(ERROR, 6, watching, 0.3)
    assert {step: kind.func for step, kind in found.items()} == kinds
    assert all(kind.keywords["reconstruct"] is ERROR for kind in found.values())
    assert found[6].keywords["share"] == 0.3
    assert vqgan.against(ERROR, 6)[6].keywords["share"] == 0.8
    (only,) = vqgan.alone(ERROR).items()
    assert (only[0], only[1].func, only[1].keywords) == (
        0,
        vqgan.plain_step,
        {"reconstruct": ERROR},
    )


BAD = {
    "watching": (lambda x: vqgan.against(ERROR, 5, 6), "watching"),
    "negative_watching": (lambda x: vqgan.against(ERROR, 5, -1), "watching"),
    "beta": (lambda x: ReversedCodebook(normals(K, D), -1.0), "beta"),
    "no_images": (lambda x: vqgan.game_step(players(), x / 0, generator(), ERROR), "images"),
    "no_slope": (
        lambda x: vqgan.game_step(players(), x, generator(), lambda y, _: y[0, 0, 0, 0].detach()),
        "loss",
    ),
    "share": (lambda x: vqgan.game_step(players(), x, generator(), ERROR, -1.0), "share"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, argument = BAD[name]
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call(images())
