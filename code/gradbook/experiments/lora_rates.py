"""Which step size each member of LoRA's family shall have, chosen on sentences set aside for it.

The ways are those of :mod:`gradbook.experiments.lora_reviews`; the seeds are others. Nothing here
sees the test sentences.
"""

from gradbook.experiments import lora_reviews
from gradbook.experiments.lora_reviews import WAYS
from gradbook.language import splits

SEEDS = (1000, 1001)
ROWS, EPOCHS = 480, 2
# Of each family: the way that is tried, and the rates.
TRIED = {
    "lora": ("lora 4", (3e-3, 1e-2, 3e-2)),
    "dora": ("dora 4", (3e-3, 1e-2, 3e-2)),
    "adalora": ("adalora 4", (3e-3, 1e-2, 3e-2)),
    "pissa": ("pissa 4", (1e-3, 3e-3, 1e-2)),
    "plus": ("plus 4", (3e-4, 1e-3, 3e-3)),
    "vera": ("vera 256", (1e-2, 3e-2, 1e-1)),
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
    for family, (name, rates) in TRIED.items():
        results = [
            lora_reviews.tuned(WAYS[name], rows, data.choosing, seed, rate, EPOCHS)[1]
            for rate in rates
        ]
        measured = {key: [r[key] for r in results] for key in ("accuracy", "log_loss")}
        found[family] = {"rates": list(rates)} | measured
    return found
