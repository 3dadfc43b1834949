"""LoRA at other maps than those to queries and values, each place with a step size of its own.

All else is as in :mod:`gradbook.experiments.lora_reviews`, seed by seed: encoder, sentences, order,
head, and what starts at random. There the same ways learn at the rate of queries and values, and
fail. The rates are those of the best accuracy in :mod:`gradbook.experiments.lora_place_rates`.
"""

from typing import Any

import torch

from gradbook.experiments.lora_reviews import WAYS, tuned
from gradbook.experiments.review_tuning import BATCH, SHORT, TABLE, Scale
from gradbook.language import splits

SEEDS = tuple(range(5))
# By place: of those tried by lora_place_rates, the one of the best accuracy.
RATES = {"attention 2": 3e-3, "inner 2": 3e-3, "all 1": 3e-3, "all 4": 3e-3}

data_digest = splits.data_digest


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune at every place, and measure on the test sentences.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.
        scale: how much to learn from.

    Returns:
        ``short``, as :func:`run_short`; by place, as
        :func:`gradbook.experiments.lora_reviews.tuned`, the ``ways``.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, scale.rows, seed + 10_000)
    found = {
        name: tuned(WAYS[name], rows, data.test, seed, rate, scale.epochs)[1]
        for name, rate in RATES.items()
    }
    return {"short": run_short(seed), "ways": found}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed at all maps, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        After one pass over 160 sentences with rank 1 at all maps, the loss of the last five of ten
        steps, ``late_loss``.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, SHORT.rows, seed + 10_000)
    test = data.test.at(torch.arange(4 * BATCH))
    found = tuned(WAYS["all 1"], rows, test, seed, RATES["all 1"], SHORT.epochs)[1]
    return {"late_loss": found["late_loss"]}
