"""Which step size each family of ways to tune shall have, chosen on sentences set aside for it.

The ways are those of :mod:`gradbook.experiments.review_tuning`; the seeds are others. Nothing here
sees the test sentences.
"""

from gradbook.experiments import review_tuning
from gradbook.language import splits

SEEDS = (1000, 1001)
# Of each family: the way that is tried, and the rates.
TRIED = {
    "head": ("head", (1e-3, 1e-2, 3e-2)),
    "layers": ("all", (3e-5, 1e-4, 3e-4)),
    "biases": ("biases", (1e-3, 3e-3, 1e-2)),
    "ia3": ("ia3", (3e-3, 1e-2, 3e-2)),
    "adapters": ("adapters 16", (3e-4, 1e-3, 3e-3)),
    "compacter": ("compacter 16", (1e-3, 3e-3, 1e-2)),
}

data_digest = splits.data_digest


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Try three rates of every family.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.

    Returns:
        By family, by ``rates``, ``accuracy`` and ``log_loss`` on the 600 choosing sentences.
    """
    data, scale = splits.movies(), review_tuning.SMALL
    rows = splits.drawn(data.pool, scale.rows, seed + 10_000)
    found = {}
    for family, (name, rates) in TRIED.items():
        results = [
            review_tuning.tuned(name, rows, data.choosing, seed, rate, scale.epochs)[1]
            for rate in rates
        ]
        measured = {key: [r[key] for r in results] for key in ("accuracy", "log_loss")}
        found[family] = {"rates": list(rates)} | measured
    return found
