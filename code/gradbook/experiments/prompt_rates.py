"""Which step size each family of prompts shall have, chosen on sentences set aside for it.

The ways are those of :mod:`gradbook.experiments.prompt_reviews`; the seeds are others. Nothing here
sees the test sentences.
"""

from gradbook.experiments import prompt_reviews
from gradbook.experiments.prompt_reviews import WAYS, Way, from_mlp, injected
from gradbook.language import splits

SEEDS = (1000, 1001)
ROWS = 480
# Of each family: the way that is tried, and the rates.
TRIED = {
    "prompt": (WAYS["prompt"], (3e-3, 1e-2, 3e-2)),
    "p-tuning": (WAYS["p-tuning"], (3e-4, 1e-3, 3e-3)),
    "prefix": (WAYS["prefix"], (3e-3, 1e-2, 3e-2)),
    "mlp": (Way("mlp", injected(from_mlp), WAYS["prefix"].kept), (1e-3, 3e-3, 1e-2)),
    "lora": (WAYS["lora 6"], (1e-3, 3e-3, 1e-2)),
}

data_digest = splits.data_digest


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Try three rates of every family.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.

    Returns:
        By family, by ``rates``, ``accuracy`` and ``log_loss`` on the 600 choosing sentences.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, ROWS, seed + 10_000)
    found = {}
    for family, (way, rates) in TRIED.items():
        results = [prompt_reviews.tuned(way, rows, data.choosing, seed, rate)[1] for rate in rates]
        measured = {key: [r[key] for r in results] for key in ("accuracy", "log_loss")}
        found[family] = {"rates": list(rates)} | measured
    return found
