"""A decoder strong enough to do without its code: each pixel also sees the pixels before it.

Images are binary rows, [n, pixels], in reading order. All values are in nats.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook import normal_vae
from gradbook.normal_vae import NormalVAE


class Context(nn.Module):
    """What earlier pixels say of each: a masked layer of rectifiers and a direct linear path.

    With no rectifiers this is a fully visible sigmoid belief network.

    Args:
        pixels: of an image.
        hidden: rectifiers, spread evenly over how many pixels they may see.
        generator: of the first layer's weights, of the CPU; all others start at zero, in float32.

    Source: Germain et al. 2015, section 3.
    """

    def __init__(self, pixels: int, hidden: int, generator: torch.Generator):
        super().__init__()
        order = torch.arange(pixels, device="cpu")
        sees = torch.linspace(1, pixels - 1, hidden, dtype=torch.float64, device="cpu").round()
        self.register_buffer("inward", (order < sees[:, None]).float())
        self.register_buffer("outward", (sees <= order[:, None]).float())
        self.register_buffer("before", (order < order[:, None]).float())
        # A page's default type may be float64, whose draws would be other weights.
        zeros = partial(torch.zeros, dtype=torch.float32, device="cpu")
        self.first = nn.Parameter(zeros(hidden, pixels))
        self.shift = nn.Parameter(zeros(hidden))
        self.second = nn.Parameter(zeros(pixels, hidden))
        self.direct = nn.Parameter(zeros(pixels, pixels))
        self.bias = nn.Parameter(zeros(pixels))
        nn.init.xavier_uniform_(self.first, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logit of each pixel given those before it.

        Args:
            images: [n, pixels].

        Returns:
            [n, pixels].
        """
        hidden = functional.linear(images, self.first * self.inward, self.shift).relu()
        seen = functional.linear(images, self.direct * self.before, self.bias)
        return seen + functional.linear(hidden, self.second * self.outward)


class StrongVAE(NormalVAE):
    """A VAE whose pixels also depend on those before them.

    Args:
        plain: its encoder and decoder are taken over.
        context: see the attribute.

    Attributes:
        context: maps images to what is added to the decoder's logits.
    """

    def __init__(self, plain: NormalVAE, context: Context):
        super().__init__(plain.encoder, plain.decoder)
        self.context = context

    def log_likelihood(self, logits: Tensor, images: Tensor) -> Tensor:
        """Compute log p(x | z), the sum over pixels given the code and the pixels before.

        Args:
            logits: from the decoder, [n, pixels].
            images: [n, pixels].

        Returns:
            [n].
        """
        return normal_vae.log_likelihood(logits + self.context(images), images)
