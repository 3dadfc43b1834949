"""Larger step sizes for the prefix than :mod:`gradbook.experiments.prompt_rates` tried.

There the largest of three was the best for the prefix; here are three that are larger still, on the
same sentences and with the same seeds.
"""

from gradbook.experiments import prompt_rates, prompt_reviews
from gradbook.language import splits

SEEDS = prompt_rates.SEEDS
RATES = (1e-1, 3e-1, 1.0)

data_digest = splits.data_digest


def run(seed: int) -> dict[str, list[float]]:
    """Try the three rates.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.

    Returns:
        By ``rates``, ``accuracy`` and ``log_loss`` on the 600 choosing sentences.
    """
    data, way = splits.movies(), prompt_reviews.WAYS["prefix"]
    rows = splits.drawn(data.pool, prompt_rates.ROWS, seed + 10_000)
    results = [prompt_reviews.tuned(way, rows, data.choosing, seed, rate)[1] for rate in RATES]
    measured = {key: [r[key] for r in results] for key in ("accuracy", "log_loss")}
    return {"rates": list(RATES)} | measured
