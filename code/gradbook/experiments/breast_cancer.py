"""Both gradient estimators on a real posterior: logistic regression on the breast-cancer data.

Thirty standardized features and an intercept make 31 coefficients, each N(0, 1) a priori. Four fits
climb the same ELBO with the same number of steps, draws and step sizes: a mean-field normal by the
plain score-function gradient, by the same with leave-one-out baselines, and by the pathwise
gradient; and a normal with full covariance by the pathwise gradient. The yardstick is a long run of
NUTS, checked in turn by importance sampling.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradbook import data, device, logistic, normals, variational, yardsticks
from gradbook.normals import Family, Normal, Parameters
from gradbook.variational import Surrogate, Target

SEEDS = tuple(range(10))
DRAWS = 10
STEPS = 3000
SHORT_STEPS = 300
RATE = 0.03
OTHER_RATES = (0.01, 0.1)
CURVE_DRAWS = 2_000
FINAL_DRAWS = 20_000
REPLICATES = 200
SHORT_REPLICATES = 500
CHAINS = 4
WARMUP = 1_000
CHAIN_DRAWS = 10_000
IMPORTANCE_DRAWS = 200_000
COEFFICIENTS = 31


class Method(NamedTuple):
    """A way to fit: whose gradient, which family, and how many axes its raw scale has."""

    surrogate: Surrogate
    family: Family
    axes: int


class Fit(NamedTuple):
    """A finished fit: the curve of the ELBO, and the parameters kept along it."""

    curve: list[float]
    kept: dict[int, Parameters]


METHODS = {
    "score": Method(variational.score, normals.mean_field, 1),
    "leave_one_out": Method(variational.score_leave_one_out, normals.mean_field, 1),
    "pathwise": Method(variational.elbo, normals.mean_field, 1),
    "full_covariance": Method(variational.elbo, normals.full_covariance, 2),
}
MEAN_FIELD = ("score", "leave_one_out", "pathwise")


def data_digest() -> str:
    """Summarize the data that the record depends on.

    Returns:
        The SHA-256 of the breast-cancer file.
    """
    return hashlib.sha256(data.breast_cancer_file().read_bytes()).hexdigest()


def names() -> tuple[str, ...]:
    """Name the 31 coefficients.

    Returns:
        ``intercept``, then the features.
    """
    return ("intercept", *data.breast_cancer().names)


def posterior(where: torch.device | None = None) -> Target:
    """Build the log joint density of the breast-cancer model.

    Args:
        where: the device; by default the book's.

    Returns:
        A function from coefficients [..., 31] to [...].
    """
    table = data.breast_cancer()
    where = device() if where is None else where
    design = logistic.with_intercept(table.features).to(where)
    labels = table.labels.to(where)
    return lambda coefficients: logistic.log_joint(coefficients, design, labels)


def run(seed: int) -> dict[str, Any]:
    """Fit with every estimator from one seed.

    Args:
        seed: of the noise; all fits of one seed see the same noise.

    Returns:
        ``short``, as :func:`run_short`; ``steps``, at which the curves are
        sampled; ``fits`` by method (the ELBO's ``curve``; the final
        ``elbo`` with its ``stderr``; ``mean`` and ``sd`` of the 31
        coefficients); ``variances`` by estimator, the total variance of
        one step's gradient at the pathwise fit's parameters after each of
        ``steps``; ``other_rates``, the final ELBO by step size and
        estimator.
    """
    fits = {name: climb(method, seed) for name, method in METHODS.items()}
    path = fits["pathwise"].kept
    return {
        "short": run_short(seed),
        "steps": list(path),
        "fits": {
            name: {"curve": fit.curve, **_summary(METHODS[name], fit, seed)}
            for name, fit in fits.items()
        },
        "variances": _transposed([variances(theta, seed, REPLICATES) for theta in path.values()]),
        "other_rates": {str(rate): _finals(seed, rate) for rate in OTHER_RATES},
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the noise.

    Returns:
        The ELBO after 300 steps by leave-one-out and by pathwise, and
        how many times the variance of the pathwise gradient the other
        two have at the start, as logarithms to base 10.
    """
    elbos = {
        name: climb(METHODS[name], seed, steps=SHORT_STEPS).curve[-1]
        for name in ("leave_one_out", "pathwise")
    }
    start = variances(initial(METHODS["pathwise"]), seed, SHORT_REPLICATES)
    return {
        "elbo_leave_one_out": elbos["leave_one_out"],
        "elbo_pathwise": elbos["pathwise"],
        "log10_ratio_score": math.log10(start["score"] / start["pathwise"]),
        "log10_ratio_leave_one_out": math.log10(start["leave_one_out"] / start["pathwise"]),
    }


def climb(method: Method, seed: int, steps: int = STEPS, rate: float = RATE) -> Fit:
    """Climb the ELBO from the prior by Adam, the step size falling linearly to zero.

    Args:
        method: one of ``METHODS``.
        seed: of the noise.
        steps: how many steps of ``DRAWS`` draws each.
        rate: the first step size.

    Returns:
        The ELBO at about forty steps, the first and last among them, each
        estimated on the same draws, and the parameters there.
    """
    target = posterior()
    kept = variational.fit(
        variational.gradient_of(method.surrogate, target, method.family),
        initial(method),
        noises(seed, steps, DRAWS),
        [rate * (1 - step / steps) for step in range(steps)],
        {0, *torch.logspace(0, math.log10(steps), 42).round().int().tolist()},
    )
    fixed = next(noises(seed + 1_000, 1, CURVE_DRAWS))
    curve = [
        variational.elbo(target, method.family, theta, fixed).item() for theta in kept.values()
    ]
    return Fit(curve, kept)


def initial(method: Method) -> Parameters:
    """Start at the prior, the standard normal.

    Args:
        method: one of ``METHODS``.

    Returns:
        Zeros, on the book's device.
    """
    shapes = [COEFFICIENTS], [COEFFICIENTS] * method.axes
    return tuple(torch.zeros(s, dtype=torch.float64, device=device()) for s in shapes)


def noises(seed: int, steps: int, draws: int) -> Iterator[Tensor]:
    """Yield the noise of each step, drawn on the CPU so that every device sees the same.

    Args:
        seed: of the generator.
        steps: how many batches.
        draws: rows of each.

    Yields:
        Standard normal draws [draws, 31] on the book's device.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        # On the CPU by name: a page's default device may be one that refuses a CPU generator.
        draw = torch.randn(
            draws, COEFFICIENTS, generator=generator, dtype=torch.float64, device="cpu"
        )
        yield draw.to(device())


def variances(theta: Parameters, seed: int, replicates: int) -> dict[str, float]:
    """Measure the variance of one step's gradient of the mean-field ELBO.

    Args:
        theta: where.
        seed: of the noise.
        replicates: how many independent gradients to compare.

    Returns:
        By estimator, the variances of the 62 coordinates, summed.
    """
    target = posterior()
    noise = torch.stack(list(noises(seed + 2_000, replicates, DRAWS)))
    found = {}
    for name in MEAN_FIELD:
        method = METHODS[name]
        gradient = variational.gradient_of(method.surrogate, target, method.family)
        parts = torch.func.vmap(gradient, (None, 0))(theta, noise)
        found[name] = sum(part.var(0).sum().item() for part in parts)
    return found


def reference() -> dict[str, Any]:
    """Compute the yardstick, on the CPU whatever the book's device is.

    Returns:
        ``names`` of the coefficients; ``nuts``, ``laplace`` and
        ``importance``, each with ``mean`` and ``sd`` of the coefficients.
    """
    table = data.breast_cancer()
    laplace = logistic.laplace(logistic.with_intercept(table.features), table.labels)
    target = posterior(torch.device("cpu"))
    chains = yardsticks.nuts(target, Normal(*laplace), CHAINS, CHAIN_DRAWS, WARMUP)
    full = METHODS["full_covariance"]
    theta = climb(full, SEEDS[0]).kept[STEPS]
    proposal = full.family(tuple(part.cpu() for part in theta))
    return {
        "names": list(names()),
        "nuts": yardsticks.moments(chains),
        "laplace": {"mean": laplace.mode.tolist(), "sd": _deviations(laplace.factor).tolist()},
        "importance": yardsticks.importance(target, proposal, IMPORTANCE_DRAWS),
    }


def _summary(method: Method, fit: Fit, seed: int) -> dict[str, Any]:
    q = method.family(fit.kept[STEPS])
    values = posterior()(normals.sample(q, next(noises(seed + 3_000, 1, FINAL_DRAWS))))
    return {
        "elbo": (values.mean() + normals.entropy(q)).item(),
        "stderr": (values.std() / math.sqrt(FINAL_DRAWS)).item(),
        "mean": q.mean.tolist(),
        "sd": _deviations(q.factor).tolist(),
    }


def _finals(seed: int, rate: float) -> dict[str, float]:
    methods = {name: METHODS[name] for name in MEAN_FIELD}
    return {
        name: _summary(m, climb(m, seed, rate=rate), seed)["elbo"] for name, m in methods.items()
    }


def _deviations(factor: Tensor) -> Tensor:
    return factor.square().sum(1).sqrt()


def _transposed(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
