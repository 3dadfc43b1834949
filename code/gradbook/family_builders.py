"""Four families of models of binary pixels, each built into a :class:`gradbook.families.Model`.

An autoregressive model (NADE), one with latent variables (a VAE), a flow on dequantized pixels
(real NVP) and a GAN. All randomness is drawn on the CPU, then moved to the book's device.
"""

import torch
from torch import Tensor

from gradbook import flows, gan, nade, normal_vae
from gradbook.devices import device
from gradbook.families import Model, Player


def autoregressive(pixels: int, width: int, generator: torch.Generator) -> Model:
    """Build a NADE; its features are its last hidden units.

    Args:
        pixels: n.
        width: hidden units.
        generator: of the weights.

    Returns:
        A model whose ``log_prob`` is exact.

    Source: H. Larochelle and I. Murray, 2011.
    """
    start = nade.initial_nade(pixels, width, generator)
    theta = nade.Nade(*(part.float().to(device()).requires_grad_() for part in start))

    def log_prob(x: Tensor, generator: torch.Generator) -> Tensor:
        return nade.log_prob(nade.nade_logits(theta, x), x)

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        return -log_prob(x, generator).mean()

    def sample(count: int, generator: torch.Generator) -> Tensor:
        return nade.nade_sample(theta, _uniform((count, pixels), generator))

    def features(x: Tensor) -> Tensor:
        return nade.nade_features(theta, x)

    return Model((Player(tuple(theta), loss),), sample, features, log_prob)


def latent_variable(
    pixels: int,
    width: int,
    generator: torch.Generator,
    latents: int,
    draws: int,
) -> Model:
    """Build a VAE with a normal latent; its features are the posterior means.

    Args:
        pixels: n.
        width: hidden units of the encoder and of the decoder.
        generator: of the weights.
        latents: of an image.
        draws: of the latent for one ``log_prob``, which bounds the exact
            one from below, the closer the more there are.

    Returns:
        A model trained by the ELBO with one draw.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov, 2016, equation 8.
    """
    model = normal_vae.build(pixels, latents, width, generator).to(device())

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        return -normal_vae.elbo(model, x, _normal((len(x), latents), generator)).mean()

    def log_prob(x: Tensor, generator: torch.Generator) -> Tensor:
        noise = _normal((draws, len(x), latents), generator)
        return normal_vae.iwae_bound(normal_vae.log_weights(model, x, noise))

    def sample(count: int, generator: torch.Generator) -> Tensor:
        logits = model.decoder(_normal((count, latents), generator))
        return (_uniform((count, pixels), generator) < logits.sigmoid()).to(logits.dtype)

    def features(x: Tensor) -> Tensor:
        return model.encoder(x).mean

    return Model((Player(tuple(model.parameters()), loss),), sample, features, log_prob)


def flow(
    pixels: int,
    width: int,
    generator: torch.Generator,
    layers: int,
    draws: int,
) -> Model:
    """Build a real NVP on dequantized pixels; its features are the noise of the middle.

    Args:
        pixels: n.
        width: hidden units of a coupling.
        generator: of the weights.
        layers: couplings.
        draws: of the dequantization, over which ``log_prob`` averages.

    Returns:
        A model whose ``log_prob`` is a bound in expectation.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio, 2017; L. Theis, A. van
    den Oord and M. Bethge, 2016, section 3.1.
    """
    model = flows.build(pixels, width, layers, generator).to(device())

    def bound(x: Tensor, generator: torch.Generator) -> Tensor:
        return flows.bits_log_prob_bound(model, x, _uniform(x.shape, generator))

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        return -bound(x, generator).mean()

    def log_prob(x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.stack([bound(x, generator) for _ in range(draws)]).mean(0)

    def sample(count: int, generator: torch.Generator) -> Tensor:
        return flows.bits_sample(model, _normal((count, pixels), generator))

    def features(x: Tensor) -> Tensor:
        middle = flows.dequantized(x, torch.full_like(x, 0.5))
        return flows.to_noise(model, flows.to_line(middle)[0])[0]

    return Model((Player(tuple(model.parameters()), loss),), sample, features, log_prob)


def adversarial(
    pixels: int,
    width: int,
    generator: torch.Generator,
    latents: int,
    temperature: float,
    penalty: float,
) -> Model:
    """Build a GAN; its features are the discriminator's hidden units.

    Bits pass gradients to the generator by the straight-through estimator.

    Args:
        pixels: n.
        width: hidden units of the generator and of the discriminator.
        generator: of the weights.
        latents: noise variables of an image.
        temperature: of the relaxed bits that the gradient sees.
        penalty: half of it weights the squared gradient of the
            discriminator at the data.

    Returns:
        A model of two players, the discriminator first, without
        ``log_prob``.

    Source: I. Goodfellow et al., 2014; L. Mescheder et al., 2018.
    """
    networks = gan.build(pixels, latents, width, generator)
    painter, critic = (network.to(device()) for network in networks)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        logits = painter(_normal((count, latents), generator))
        uniforms = _uniform((count, pixels), generator)
        return gan.hard_bits(logits, temperature, uniforms)

    def critic_loss(x: Tensor, generator: torch.Generator) -> Tensor:
        fake = draw(len(x), generator).detach()
        game = gan.discriminator_loss(critic(x), critic(fake))
        return game + 0.5 * penalty * gan.gradient_penalty(critic, x)

    def painter_loss(x: Tensor, generator: torch.Generator) -> Tensor:
        return gan.generator_loss(critic(draw(len(x), generator)))

    def features(x: Tensor) -> Tensor:
        return gan.features(critic, x)

    players = (
        Player(tuple(critic.parameters()), critic_loss),
        Player(tuple(painter.parameters()), painter_loss),
    )
    return Model(players, draw, features, None)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device())


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(device())
