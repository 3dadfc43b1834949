"""A variational autoencoder whose latent is a row of independent categorical variables.

The encoder gives the logits of q(z | x); the decoder the logits of Bernoulli pixels; the prior of
every latent is uniform on its classes. A latent code z is one-hot rows [latents, classes], or, when
relaxed, points of their simplexes. Images are [n, 28, 28] with values from 0 to 1; grey levels get
the cross entropy that binary pixels would have on average. All bounds and divergences are in nats.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.categorical import all_one_hots
from gradbook.checks import require, require_finite
from gradbook.gumbel import exp_concrete_log_prob, gumbel_log_softmax, gumbel_one_hot
from gradbook.logits import require_fits

SIDE = 28
QUARTER = SIDE // 4


class Encoder(nn.Module):
    """Two convolutions of stride 2 and two linear layers, from an image to the logits of q.

    Args:
        latents: how many latent variables.
        classes: how many classes each has.
        width: filters of the first convolution and hidden units; the
            second convolution has twice as many filters.
        leak: slope of the hidden units below zero; with 0 they are
            rectifiers, which can die and then tell all images alike.

    Attributes:
        centre: what is subtracted from every image, [28, 28].
    """

    def __init__(self, latents: int, classes: int, width: int = 32, leak: float = 0.0):
        super().__init__()
        self.latents, self.classes, self.leak = latents, classes, leak
        self.register_buffer("centre", torch.zeros(SIDE, SIDE))
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(2 * width * QUARTER**2, width)
        self.logits = nn.Linear(width, latents * classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of q(z | x).

        Args:
            images: [n, 28, 28].

        Returns:
            [n, latents, classes].
        """
        x = self.conv1((images - self.centre)[:, None]).relu()
        x = self.conv2(x).relu()
        # Channels last in memory: this flattening copies nothing.
        x = functional.leaky_relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1)), self.leak)
        return self.logits(x).unflatten(1, (self.latents, self.classes))


class Decoder(nn.Module):
    """Two linear layers and two transposed convolutions, from a code to the logits of pixels.

    The arguments are those of :class:`Encoder`.

    Attributes:
        start: what is added to the logits of every picture, [28, 28].
    """

    def __init__(self, latents: int, classes: int, width: int = 32, leak: float = 0.0):
        super().__init__()
        self.leak = leak
        self.register_buffer("start", torch.zeros(SIDE, SIDE))
        self.hidden = nn.Linear(latents * classes, width)
        self.spread = nn.Linear(width, 2 * width * QUARTER**2)
        self.conv1 = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
        self.conv2 = nn.ConvTranspose2d(width, 1, 3, stride=2, padding=1, output_padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Compute the logits of the pixels.

        Args:
            codes: [n, latents, classes], one-hot or relaxed.

        Returns:
            [n, 28, 28].
        """
        x = functional.leaky_relu(self.hidden(codes.flatten(1)), self.leak)
        x = self.spread(x).relu().unflatten(1, (QUARTER, QUARTER, -1))
        x = self.conv1(x.permute(0, 3, 1, 2)).relu()
        return self.conv2(x)[:, 0] + self.start


class CategoricalVAE(nn.Module):
    """An encoder and a decoder. The functions of the VAE modules ask of a model only these two.

    Attributes:
        encoder: maps images [n, 28, 28] to logits [n, latents, classes].
        decoder: maps codes [n, latents, classes] to pixel logits [n, 28, 28].
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def build(
    latents: int,
    classes: int,
    generator: torch.Generator,
    width: int = 32,
    leak: float = 0.0,
    mean: Tensor | None = None,
) -> CategoricalVAE:
    """Build a model whose initial weights come from a generator.

    Weights are uniform with Glorot's bound, biases zero. With 32 latents
    of 10 classes this is the article's model, but for its decoder, which
    has one more layer there.

    Args:
        latents: how many latent variables.
        classes: how many classes each has.
        generator: of the CPU.
        width: see :class:`Encoder`.
        leak: see :class:`Encoder`.
        mean: a picture [28, 28], strictly between 0 and 1: the encoder
            sees images less it, and the decoder starts from its logits;
            by default neither.

    Returns:
        A float32 model on the CPU, channels last in memory.

    Raises:
        ValueError: if a size is not positive, or the mean has another
            shape or a value that is not between 0 and 1.

    Source: X. Glorot and Y. Bengio, 2010, equation 16.
    """
    for name, size in (("latents", latents), ("classes", classes), ("width", width)):
        if size < 1:
            raise ValueError(f"{name}: must be positive, got {size}")
    if mean is not None:
        if mean.shape != (SIDE, SIDE):
            raise ValueError(f"mean: must be [{SIDE}, {SIDE}], is {tuple(mean.shape)}")
        require((mean > 0) & (mean < 1), "mean: must be strictly between 0 and 1")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        sizes = (latents, classes, width, leak)
        model = CategoricalVAE(Encoder(*sizes), Decoder(*sizes))
    # A page's default type may be float64, whose draws would be other weights.
    model = model.float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
    if mean is not None:
        model.encoder.centre.copy_(mean)
        model.decoder.start.copy_(mean.logit())
    return model.to(memory_format=torch.channels_last)


def log_likelihood(pixel_logits: Tensor, images: Tensor) -> Tensor:
    """Compute the log-probability of images under Bernoulli pixels.

    Args:
        pixel_logits: [..., 28, 28].
        images: values from 0 to 1, of a shape that broadcasts.

    Returns:
        [...], in nats: minus the cross entropy, summed over pixels.

    Raises:
        ValueError: if a value of the images is not from 0 to 1, the shapes
            do not broadcast, or a logit is not finite.
    """
    require((images >= 0) & (images <= 1), "images: must be from 0 to 1")
    require_fits("images", images, "pixel_logits", pixel_logits)
    require_finite(pixel_logits=pixel_logits)
    entropy = functional.binary_cross_entropy_with_logits(
        *torch.broadcast_tensors(pixel_logits, images), reduction="none"
    )
    return -entropy.sum((-2, -1))


def categorical_kl(logits: Tensor) -> Tensor:
    """Compute KL(q || uniform) of independent categorical variables.

    Args:
        logits: [..., latents, classes].

    Returns:
        [...], in nats: the sum over latents of log k minus the entropy.

    Raises:
        ValueError: if the logits are not finite.
    """
    require_finite(logits=logits)
    latents, classes = logits.shape[-2:]
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).sum((-2, -1)) + latents * math.log(classes)


def relaxed_kl(
    logits: Tensor,
    temperature: float | Tensor,
    noise: Tensor,
) -> Tensor:
    """Estimate KL(q || prior) of the relaxed variables from one draw.

    Both are Concrete at the same temperature, the prior with equal
    logits. The densities are those of log y; the divergence is that of y,
    because the logarithm is a bijection. So is the division by the
    temperature: the divergence is the same at every temperature.

    Args:
        logits: [..., latents, classes].
        temperature: positive.
        noise: standard Gumbel draws that broadcast with the logits.

    Returns:
        log q - log p at the draw, summed over latents [...], in nats; its
        mean over the noise is the divergence.

    Raises:
        ValueError: as :func:`gradbook.gumbel.gumbel_log_softmax`.

    Source: Maddison, Mnih and Teh 2017, appendix C.3.
    """
    log_y = gumbel_log_softmax(logits, temperature, noise)
    log_q = exp_concrete_log_prob(log_y, logits, temperature)
    uniform = torch.zeros_like(logits)
    return (log_q - exp_concrete_log_prob(log_y, uniform, temperature)).sum(-1)


def require_own_noise(noise: Tensor, logits: Tensor) -> None:
    """Raise unless each latent of each image has noise of its own.

    Noise that broadcasts would be shared between images without a word.

    Args:
        noise: [n, latents, classes].
        logits: [n, latents, classes].

    Raises:
        ValueError: if the shapes differ.
    """
    if noise.shape != logits.shape:
        shapes = f"{tuple(noise.shape)} for logits {tuple(logits.shape)}"
        raise ValueError(f"noise: must be [n, latents, classes], is {shapes}")


def hard_codes(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw one-hot codes from q by the Gumbel-Max trick.

    Args:
        logits: [..., latents, classes].
        noise: standard Gumbel draws that broadcast with the logits.

    Returns:
        [..., latents, classes], of the logits' type.

    Raises:
        ValueError: as :func:`gradbook.gumbel.gumbel_max`.
    """
    return gumbel_one_hot(logits, noise)


def sampled_elbo(model: CategoricalVAE, images: Tensor, noise: Tensor) -> Tensor:
    """Estimate the ELBO of each image from one hard code, without bias.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        noise: standard Gumbel draws [n, latents, classes].

    Returns:
        log p(x | z) - KL(q(z | x) || p(z)), [n], in nats.

    Raises:
        ValueError: if the images are not from 0 to 1, the logits or the
            noise not finite, or the noise not of that shape.
    """
    logits = model.encoder(images)
    require_own_noise(noise, logits)
    pixel_logits = model.decoder(hard_codes(logits, noise))
    return log_likelihood(pixel_logits, images) - categorical_kl(logits)


def exact_elbo(model: CategoricalVAE, images: Tensor) -> Tensor:
    """Compute the ELBO of each image by a sum over every code.

    The decoder sees each code once, whatever the number of images: the
    log-likelihood of all pairs of image and code is one matrix product.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].

    Returns:
        [n], in nats, differentiable in the weights of both.

    Raises:
        ValueError: if the images are not from 0 to 1, the logits not
            finite, or there are more than 65536 codes.
    """
    require((images >= 0) & (images <= 1), "images: must be from 0 to 1")
    logits = model.encoder(images)
    latents, classes = logits.shape[-2:]
    codes = all_one_hots(latents, classes).to(logits)
    pixel_logits = model.decoder(codes).flatten(1)
    # log p(x | z) = sum over pixels of x * logit - softplus(logit)
    likelihoods = images.flatten(1) @ pixel_logits.T
    likelihoods = likelihoods - functional.softplus(pixel_logits).sum(-1)
    log_q = logits.log_softmax(-1).flatten(1) @ codes.flatten(1).T
    return (log_q.exp() * likelihoods).sum(-1) - categorical_kl(logits)
