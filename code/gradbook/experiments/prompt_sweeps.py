"""How long a prompt or a prefix shall be, where it starts, and what comes of several together.

The task and the ways are those of :mod:`gradbook.experiments.prompt_reviews`, on fewer sentences:
320 to learn from in 40 steps, 400 to test on. All ways of a seed share what they learn from.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradbook.experiments import prompt_reviews
from gradbook.experiments.prompt_reviews import (
    RATES,
    WIDTH,
    Way,
    class_words,
    drawn,
    from_mlp,
    from_words,
    injected,
    random_vectors,
    vocabulary,
    with_prompt,
)
from gradbook.language import encoder, splits, tuning
from gradbook.peft import prefix, prompt_starts

SEEDS = tuple(range(5))
LENGTHS = (1, 12, 48)
ROWS, TEST = 320, 400


def _prompt(build: prompt_reviews.Build, length: int = 12) -> Way:
    return Way("prompt", build, length * WIDTH)


def _prefix(family: str, put: Any, length: int = 12) -> Way:
    return Way(family, injected(put), prefix.prefix_parameters(6, length, WIDTH))


STARTS = {
    "random": _prompt(with_prompt(random_vectors)),
    "vocabulary": _prompt(with_prompt(vocabulary(12))),
    "class words": _prompt(with_prompt(class_words)),
}
WAYS = (
    STARTS
    | {f"prompt {n}": _prompt(with_prompt(vocabulary(n)), n) for n in LENGTHS if n != 12}
    | {f"prefix {n}": _prefix("prefix", drawn(n), n) for n in LENGTHS}
    | {
        "prefix from words": _prefix("prefix", from_words),
        "prefix by MLP": _prefix("mlp", from_mlp),
    }
)

data_digest = splits.data_digest


def run(seed: int) -> dict[str, Any]:
    """Tune in every way, and measure.

    Args:
        seed: of the sentences to learn from, their order, and what starts at random.

    Returns:
        By way, as :func:`gradbook.experiments.prompt_reviews.tuned`, the ``ways``; ``together``,
        the accuracy and the loss in nats of the mean of what the three starts say; and of each
        start, ``nearest``: the tokens nearest to its vectors, the largest ``cosine`` of each vector
        to a token, its ``moved``, which is the length of its way over its own at the start.
    """
    data = splits.movies()
    rows = splits.drawn(data.pool, ROWS, seed + 10_000)
    test = data.test.at(torch.arange(TEST, device="cpu"))
    found, said, nearest = {}, [], {}
    for name, way in WAYS.items():
        model, found[name] = prompt_reviews.tuned(way, rows, test, seed, RATES[way.family])
        if name in STARTS:
            said.append(tuning.predicted(model, test.tokens, 32).softmax(-1))
            nearest[name] = neighbours(model, _start(way, seed))
    mean = torch.stack(said).mean(0)
    together = {
        "accuracy": (mean.argmax(1) == test.labels).double().mean().item(),
        "log_loss": nn.functional.nll_loss(mean.log(), test.labels).item(),
    }
    return {"ways": found, "together": together, "nearest": nearest}


def neighbours(model: nn.Module, start: Tensor) -> dict[str, Any]:
    """Look at where the vectors of a prompt have come to.

    Args:
        model: a classifier whose reader has a prompt.
        start: where its vectors were, [p, e].

    Returns:
        ``nearest``, the token nearest to each vector, its ``cosine``, and how far each has
        ``moved``, over its length at the start.
    """
    with torch.no_grad():
        vectors = model.reader.prompt()
        table = model.reader.encoder.get_input_embeddings().weight
        ids = prompt_starts.nearest_tokens(vectors, table, 1)[:, 0]
        cosines = nn.functional.cosine_similarity(vectors, table[ids])
        moved = (vectors - start).norm(dim=-1) / start.norm(dim=-1)
    return {
        "nearest": encoder.tokenizer().convert_ids_to_tokens(ids.tolist()),
        "cosine": cosines.tolist(),
        "moved": moved.tolist(),
    }


@torch.no_grad()
def _start(way: Way, seed: int) -> Tensor:
    """Draw again where a prompt started."""
    generator = torch.Generator().manual_seed(seed + 20_000)
    return way.build(encoder.pretrained_encoder(), generator).reader.prompt().clone()
