"""Which step size LoRA shall have at more maps than those to queries and values.

The rate of :mod:`gradbook.experiments.lora_rates`, chosen there, is too large elsewhere: with it
nothing is learnt. So each place has its own, chosen in the same way; nothing here sees the test
sentences.
"""

from gradbook.experiments import lora_reviews
from gradbook.experiments.lora_rates import EPOCHS, ROWS
from gradbook.experiments.lora_reviews import WAYS
from gradbook.language import splits

SEEDS = (1000, 1001)
PLACES = ("attention 2", "inner 2", "all 1", "all 4")
RATES = (1e-3, 3e-3)

data_digest = splits.data_digest


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Try both rates at every place.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.

    Returns:
        By place, by ``rates``, ``accuracy`` and ``log_loss`` on the 600 choosing sentences.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, ROWS, seed + 10_000)
    found = {}
    for name in PLACES:
        results = [
            lora_reviews.tuned(WAYS[name], rows, data.choosing, seed, rate, EPOCHS)[1]
            for rate in RATES
        ]
        measured = {key: [r[key] for r in results] for key in ("accuracy", "log_loss")}
        found[name] = {"rates": list(RATES)} | measured
    return found
