"""A decoder that sees earlier pixels: what depends on what, and that it is a probability."""

import pytest
import torch

from gradbook import normal_vae
from gradbook.masked_context import Context, StrongVAE

PIXELS = 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def context(hidden=7):
    """All weights at random: as built, most are zero."""
    built = Context(PIXELS, hidden, generator()).double()
    drawn = generator(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(generator=drawn)
    return built


def model():
    plain = normal_vae.build(PIXELS, 2, 4, generator()).double()
    return StrongVAE(plain, context())


def every_image():
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * PIXELS)


@pytest.mark.parametrize("hidden", [1, 3, 7, 40])
def test_a_pixel_depends_on_all_before_it_and_on_nothing_else(hidden):
    image = torch.rand(1, PIXELS, generator=generator(2), dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(context(hidden), image)[0, :, 0]
    assert torch.equal(slopes != 0, torch.ones(PIXELS, PIXELS).tril(-1) > 0)


def test_rectifiers_alone_reach_every_earlier_pixel():
    built = context(40)
    with torch.no_grad():
        built.direct.zero_()
        built.first.abs_()
        built.second.abs_()
        built.shift.fill_(1.0)
    slopes = torch.autograd.functional.jacobian(built, torch.rand(1, PIXELS).double())[0, :, 0]
    assert torch.equal(slopes > 0, torch.ones(PIXELS, PIXELS).tril(-1) > 0)


def test_the_network_is_the_sum_over_its_weights():
    built, image = context(3), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    sees = (1, 2, 4)  # linspace 1, 2.5, 4, rounded half to even
    for i in range(PIXELS):
        logit = built.bias[i] + built.direct[i, :i] @ image[:i]
        for k, count in enumerate(sees):
            if count <= i:
                hidden = built.first[k, :count] @ image[:count] + built.shift[k]
                logit = logit + built.second[i, k] * hidden.relu()
        assert built(image[None])[0, i].item() == pytest.approx(logit.item(), rel=1e-12)


def test_a_new_context_says_nothing_and_draws_only_from_its_generator():
    before = torch.get_rng_state()
    built = Context(PIXELS, 7, generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert (built(torch.rand(3, PIXELS, generator=generator())) == 0).all()
    assert torch.equal(built.first, Context(PIXELS, 7, generator()).first)
    assert built.first.std() > 0.1


def test_the_defaults_of_a_page_change_nothing():
    expected = Context(PIXELS, 7, generator())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            built = Context(PIXELS, 7, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(
        built.state_dict().values(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32


def test_the_probabilities_of_all_images_add_up_to_one_at_every_code():
    built, images = model(), every_image()
    for code in torch.randn(3, 2, generator=generator(3), dtype=torch.float64):
        logits = built.decoder(code.expand(len(images), 2))
        total = built.log_likelihood(logits, images).exp().sum()
        assert total.item() == pytest.approx(1, rel=1e-12)


def test_code_and_context_add_their_logits():
    built, images = model(), every_image()[::5]
    logits = torch.randn(len(images), PIXELS, generator=generator(3), dtype=torch.float64)
    sums = torch.distributions.Bernoulli(logits=logits + built.context(images))
    found = built.log_likelihood(logits, images)
    torch.testing.assert_close(found, sums.log_prob(images).sum(1))


def test_the_context_is_trained_with_the_rest():
    names = {name.split(".")[0] for name, _ in model().named_parameters()}
    assert names == {"encoder", "decoder", "context"}
    built, images = model(), every_image()
    noise = torch.randn(len(images), 2, generator=generator(4), dtype=torch.float64)
    normal_vae.elbo(built, images, noise, built.log_likelihood).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in built.parameters())
