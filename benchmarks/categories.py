"""Cases of categories and their Gumbel noise, in float32 as networks draw them.

The peers draw noise of their own, so the two sides agree in law and not in value: what is compared
are statistics of 65 536 rows, and each side is timed with its drawing and its checks.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Gumbel
from torch.nn import functional

from benchmarks.timing import Case, Side
from gradbook.gumbel import (
    gumbel_max,
    gumbel_noise,
    gumbel_softmax,
    gumbel_top_k,
    noise_from_bits,
    one_hot,
)

SEED = 21
ROWS, CLASSES = 65_536, 32
TEMPERATURE = 0.7
# 4.5 standard errors of the difference of two statistics of this many rows.
RTOL = 0.015


def _logits() -> Tensor:
    row = torch.linspace(-1, 1, CLASSES, dtype=torch.float32)
    return row.expand(ROWS, CLASSES).contiguous()


def _noise() -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return gumbel_noise((ROWS, CLASSES), generator, torch.float32)


def of_shares(y: Tensor) -> Tensor:
    """Mean position among the classes, and mean largest share, of points of the simplex."""
    position = y.double() @ torch.arange(y.shape[-1], dtype=torch.float64)
    return torch.stack((position.mean(), y.double().amax(-1).mean()))


def of_noise(noise: Tensor) -> Tensor:
    """Mean and variance of the noise."""
    variance, mean = torch.var_mean(noise.double())
    return torch.stack((mean, variance))


def of_orders(indices: Tensor) -> Tensor:
    """Mean class of the first draw, the second, and so on."""
    return indices.double().mean(0)


def relaxed_case() -> tuple[Side, Side]:
    """Relaxed categories."""
    logits = _logits()

    def ours() -> Tensor:
        return gumbel_softmax(logits, TEMPERATURE, _noise())

    def peer() -> Tensor:
        torch.manual_seed(SEED)
        return functional.gumbel_softmax(logits, TEMPERATURE)

    return ours, peer


def one_hot_case() -> tuple[Side, Side]:
    """One-hot rows, forward only: the peer makes its relaxed rows on the way."""
    logits = _logits()

    def ours() -> Tensor:
        return one_hot(gumbel_max(logits, _noise()), CLASSES, torch.float32)

    def peer() -> Tensor:
        torch.manual_seed(SEED)
        return functional.gumbel_softmax(logits, TEMPERATURE, hard=True)

    return ours, peer


def noise_case() -> tuple[Side, Side]:
    """The noise alone."""
    law = Gumbel(torch.zeros((), dtype=torch.float32), torch.ones((), dtype=torch.float32))

    def peer() -> Tensor:
        torch.manual_seed(SEED)
        return law.sample((ROWS, CLASSES))

    return _noise, peer


def top_k_case(k: int = 8) -> tuple[Side, Side]:
    """Draws without replacement."""
    logits = _logits()

    def ours() -> Tensor:
        return gumbel_top_k(logits, _noise(), k)

    def peer() -> Tensor:
        torch.manual_seed(SEED)
        return torch.multinomial(logits.softmax(-1), k, replacement=False)

    return ours, peer


def tails() -> str:
    """Say how far the noise of each side reaches, and what share of its law lies beyond.

    Returns:
        A sentence for our noise and for that of each peer.
    """
    ours = noise_from_bits(torch.zeros((), dtype=torch.int32)).item()
    high = Gumbel(torch.zeros(()), torch.ones(())).base_dist.high.double()
    law = -(-high.log()).log().item()
    exponential = 53 * math.log(2)
    note = (
        f"Tail of the float32 noise: ours ends at {ours:.1f}, and {_beyond(ours):.1e} of the "
        f"Gumbel law lies beyond. torch.distributions.Gumbel ends at {law:.1f} "
        f"({_beyond(law):.1e})."
    )
    if exponentials_have_53_bits():
        note += (
            f" torch.nn.functional.gumbel_softmax ends at {exponential:.1f} "
            f"({_beyond(exponential):.1e}): our speed costs that difference."
        )
    return note


def exponentials_have_53_bits() -> bool:
    """Find out whether float32 exponentials come from float64 uniforms, as in recent builds."""
    drawn = torch.empty(100, dtype=torch.float32)
    drawn.exponential_(generator=torch.Generator().manual_seed(SEED))
    uniform = torch.empty(100, dtype=torch.float64)
    uniform.uniform_(generator=torch.Generator().manual_seed(SEED))
    return torch.allclose(drawn.double(), -torch.log1p(-uniform), rtol=1e-6, atol=0.0)


def _beyond(value: float) -> float:
    return -math.expm1(-math.exp(-value))


CASES = (
    Case(
        "Gumbel-Softmax, 65 536 rows of 32 classes, float32",
        "torch.nn.functional.gumbel_softmax",
        RTOL,
        relaxed_case,
        of_shares,
    ),
    Case(
        "one-hot Gumbel-Max draws, the same rows",
        "torch.nn.functional.gumbel_softmax(hard=True)",
        RTOL,
        one_hot_case,
        of_shares,
    ),
    Case(
        "Gumbel noise, 65 536 × 32, float32",
        "torch.distributions.Gumbel.sample",
        RTOL,
        noise_case,
        of_noise,
    ),
    Case(
        "8 of 32 classes without replacement, the same rows",
        "torch.multinomial(replacement=False)",
        RTOL,
        top_k_case,
        of_orders,
    ),
)
