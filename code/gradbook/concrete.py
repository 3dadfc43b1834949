"""The density of the Concrete distribution, on the simplex and for logarithms of shares."""

import math

import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.logits import centred, checked_temperature, require_classes, require_fits


def concrete_log_prob(
    y: Tensor,
    logits: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """Compute the log density of the Concrete distribution on the simplex.

    The density is with respect to Lebesgue measure of all coordinates but
    one, whichever one.

    Args:
        y: points of the open simplex [..., k].
        logits: [..., k].
        temperature: positive; a number, a scalar tensor, or one with a
            last axis of 1.

    Returns:
        [...]; minus infinity where an impossible class has a share.

    Raises:
        ValueError: if a row of y does not sum to 1 or is not positive
            throughout, the temperature is not positive, the logits are as
            :func:`gradbook.gumbel.gumbel_max` refuses them, or the shapes
            disagree.

    Source: Maddison, Mnih and Teh 2017, equation 11.
    """
    _require_like_logits("y", y, logits)
    require(y > 0, "y: must be positive; for shares that underflow use exp_concrete_log_prob")
    require((y.sum(-1) - 1).abs() <= _tolerance(y), "y: rows must sum to 1")
    log_y = y.log()
    return _log_density(log_y, logits, temperature) - log_y.sum(-1)


def exp_concrete_log_prob(
    log_y: Tensor,
    logits: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """Compute the log density of the logarithm of a Concrete variable.

    Args:
        log_y: finite logarithms of points of the simplex [..., k].
        logits: [..., k].
        temperature: positive; a number, a scalar tensor, or one with a
            last axis of 1.

    Returns:
        [...], with respect to Lebesgue measure of the k - 1 differences
        of ``log_y`` from one of its coordinates, whichever one; minus
        infinity where an impossible class has a share.

    Raises:
        ValueError: if ``log_y`` is not finite or its exponentials do not
            sum to 1 in a row, or as :func:`concrete_log_prob`.

    Source: Maddison, Mnih and Teh 2017, appendix C.3.
    """
    _require_like_logits("log_y", log_y, logits)
    require(log_y.isfinite(), "log_y: must be finite")
    total = log_y.detach().logsumexp(-1)
    require(total.abs() <= _tolerance(log_y), "log_y: exponentials of a row must sum to 1")
    return _log_density(log_y, logits, temperature)


def _log_density(log_y: Tensor, logits: Tensor, temperature: float | Tensor) -> Tensor:
    terms, k = centred(logits), log_y.shape[-1]
    tau = checked_temperature(temperature, terms + log_y)
    if not isinstance(tau, Tensor):
        tau = torch.tensor(tau, dtype=log_y.dtype, device=log_y.device)
    terms, log_tau = terms - tau * log_y, tau.log().reshape(tau.shape[:-1])
    constant = math.lgamma(k) + (k - 1) * log_tau
    return constant + terms.sum(-1) - k * terms.logsumexp(-1)


def _require_like_logits(name: str, y: Tensor, logits: Tensor) -> None:
    require_classes(name, y, logits.shape[-1] if logits.ndim else 1)
    require_fits(name, y, "logits", logits)


def _tolerance(y: Tensor) -> float:
    return math.sqrt(torch.finfo(y.dtype).eps)
