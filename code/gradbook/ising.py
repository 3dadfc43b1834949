"""The Ising model on a small grid: a law of binary pictures that is known exactly.

Pixels x are 0 or 1, spins s = 2 x - 1, and the law of a picture is proportional to
exp(coupling * sum of s_i s_j over neighbours + field * sum of s_i), the border being free. A *state*
is one of the 2^columns values of a row. A sum over pictures goes row by row: to every state of a row
the *message* from below is the logarithm of the sum over all rows beneath it.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from gradbook.checks import require, require_finite
from gradbook.expectation import strings

MOST_COLUMNS = 10


class Ising(NamedTuple):
    """A coupling and a field, numbers or scalar tensors, and a grid with up to 10 columns.

    Numbers count as float64; what is computed is of the tensors' type.
    """

    coupling: Tensor | float
    field: Tensor | float
    rows: int
    columns: int


class _Sums(NamedTuple):
    # own: weight of a state by itself [S]; between: of two rows [S, S]; below: messages, top row first.
    own: Tensor
    between: Tensor
    below: list[Tensor]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the two sums that the law of a picture depends on.

    Args:
        x: zeros and ones [..., rows, columns].

    Returns:
        The sum of s_i s_j over neighbours and the sum of s_i, each [...].
    """
    s = 2 * x - 1
    across = (s[..., 1:] * s[..., :-1]).sum((-1, -2))
    down = (s[..., 1:, :] * s[..., :-1, :]).sum((-1, -2))
    return across + down, s.sum((-1, -2))


def log_partition(model: Ising) -> Tensor:
    """Compute the logarithm of the normalizer Z, by a sum over rows.

    Args:
        model: a grid.

    Returns:
        A scalar, differentiable in the coupling and the field.

    Raises:
        ValueError: if the coupling or the field is not a finite scalar,
            there is no row, or the columns are not from 1 to 10.

    Source: Kramers and Wannier 1941 (the transfer matrix).
    """
    sums = _sum_rows(model)
    return (sums.own + sums.below[0]).logsumexp(0)


def log_prob(model: Ising, x: Tensor) -> Tensor:
    """Compute the log-probability of pictures.

    Args:
        model: a grid.
        x: zeros and ones [..., rows, columns].

    Returns:
        [...], in nats, of the model's type.

    Raises:
        ValueError: as :func:`log_partition`; or if ``x`` has another shape
            or another value.
    """
    coupling, field = _parameters(model)
    if x.shape[-2:] != (model.rows, model.columns):
        grid = f"[..., {model.rows}, {model.columns}]"
        raise ValueError(f"x: must be {grid}, is {tuple(x.shape)}")
    require((x == 0) | (x == 1), "x: must be zeros and ones")
    pairs, spins = statistics(x.to(coupling.dtype))
    return coupling * pairs + field * spins - log_partition(model)


def mean_energy(model: Ising) -> Tensor:
    """Compute the mean of minus the exponent, from the slopes of log Z.

    Args:
        model: a grid.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`log_partition`.
    """
    coupling, field = _parameters(model)

    def log_z(coupling: Tensor, field: Tensor) -> Tensor:
        return log_partition(Ising(coupling, field, *model[2:]))

    pairs, spins = grad(log_z, argnums=(0, 1))(coupling, field)
    return -(coupling * pairs + field * spins)


def entropy(model: Ising) -> Tensor:
    """Compute the entropy of the law, log Z plus the mean energy.

    Args:
        model: a grid.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: as :func:`log_partition`.
    """
    return log_partition(model) + mean_energy(model)


@torch.no_grad()
def sample(model: Ising, uniforms: Tensor) -> Tensor:
    """Draw exact, independent pictures, a row at a time from the top.

    The messages from below make the law of a row, given the one above,
    a table; its quantile function is read at the noise.

    Args:
        model: a grid, of up to 10 columns.
        uniforms: [n, rows], at least 0 and below 1.

    Returns:
        Zeros and ones [n, rows, columns], of the type of ``uniforms``.

    Raises:
        ValueError: as :func:`log_partition`; or if the noise has another
            shape or is out of range.
    """
    sums = _sum_rows(model)
    if uniforms.ndim != 2 or uniforms.shape[1] != model.rows:
        shape = tuple(uniforms.shape)
        raise ValueError(f"uniforms: must be [n, {model.rows}], is {shape}")
    require((uniforms >= 0) & (uniforms < 1), "uniforms: must be in [0, 1)")
    weights = (sums.own + sums.below[0])[None]
    state = torch.zeros_like(uniforms[:, 0], dtype=torch.long)
    states = []
    for row in range(model.rows):
        if row > 0:
            weights = sums.between + sums.own + sums.below[row]
        state = _quantile(weights, state, uniforms[:, row])
        states.append(state)
    bits = strings(2, model.columns).to(uniforms)
    return bits[torch.stack(states, 1)]


def _quantile(weights: Tensor, given: Tensor, uniforms: Tensor) -> Tensor:
    # weights [conditions, S]; divided by its end, a distribution function ends at exactly 1.
    cdf = weights.double().softmax(1).cumsum(1).to(uniforms.device)
    cdf = (cdf / cdf[:, -1:])[given]
    uniforms = uniforms.double().contiguous()
    return torch.searchsorted(cdf, uniforms[:, None], right=True)[:, 0]


def _sum_rows(model: Ising) -> _Sums:
    coupling, field = _parameters(model)
    s = 2 * strings(2, model.columns).to(coupling) - 1
    own = coupling * (s[:, 1:] * s[:, :-1]).sum(1) + field * s.sum(1)
    between = coupling * (s @ s.T)
    below = [torch.zeros_like(own)]
    for _ in range(model.rows - 1):
        below.append((between + own + below[-1]).logsumexp(1))
    return _Sums(own, between, below[::-1])


def _parameters(model: Ising) -> tuple[Tensor, Tensor]:
    if model.rows < 1:
        raise ValueError(f"rows: must be at least 1, got {model.rows}")
    if not 1 <= model.columns <= MOST_COLUMNS:
        raise ValueError(f"columns: must be from 1 to {MOST_COLUMNS}, got {model.columns}")
    for name, value in (("coupling", model.coupling), ("field", model.field)):
        if isinstance(value, Tensor) and (value.ndim > 0 or not value.is_floating_point()):
            kind = f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"{name}: must be a scalar of a floating type, is {kind}")
    require_finite(coupling=model.coupling, field=model.field)
    given = [v for v in model[:2] if isinstance(v, Tensor)]
    like = given[0] if given else torch.zeros((), dtype=torch.float64)
    kind = {"dtype": like.dtype, "device": like.device}
    return torch.as_tensor(model.coupling, **kind), torch.as_tensor(model.field, **kind)
