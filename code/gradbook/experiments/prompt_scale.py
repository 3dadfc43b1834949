"""Does the gap of prompt tuning close with scale? Decoders of four sizes, tuned to Milton.

Three decoders of the book's own read nothing but Shakespeare; SmolLM2 read a part of the web, on
which both poets may have stood. Each is tuned on Books I to VIII of *Paradise Lost* in two ways: a
prompt of 20 vectors in front of a frozen decoder, and all weights. What counts is the loss on Book
X, and ``closed``: of what all weights gain the share that the prompt gains. The tiny one serves only
as the stand-in that a page runs live: it learnt little, at positions 0 to 63 alone, and behind a
prompt the last 20 pieces of a window stand at others.

All learn from few windows, small and medium from many, too: what SmolLM2 learns from is kept short
by what its steps cost. A seed draws the windows, their order and the pieces that the prompt starts
from, five seeds for our own decoders and two for SmolLM2; the decoders are the same for all. A
window has 64 of a decoder's pieces, and its first piece is given to every method; SmolLM2's pieces
are longer, hence bits per character. The rates are, for every case, the best on Book IX of those in
``TRIED``, with seed 1000: see :func:`trial`.
"""

import hashlib
import math
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from gradbook import data
from gradbook.devices import device
from gradbook.language import completion, decoder, plays, small_decoders
from gradbook.language.completion import Examples
from gradbook.language.pretraining import Settings
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.language.small_decoders import Size
from gradbook.language.tuning import Setting
from gradbook.peft.prompt_starts import vocabulary_start
from gradbook.peft.prompts import IGNORED, SoftPrompt

SEEDS = tuple(range(5))
LENGTH, VECTORS, MEASURED = 64, 20, 48
METHODS = ("prompt", "full")
TINY = Size("tiny", 32, 2, 2)
SIZES = {"tiny": TINY, "small": small_decoders.SMALL, "medium": small_decoders.MEDIUM}
# The tiny one's is so short that a page can wait for it.
TRAININGS = {TINY: Settings(steps=100, batch=8, length=64), **small_decoders.TRAININGS}


class Amount(NamedTuple):
    """How much there is to learn from: steps, and windows of a step; no window comes twice."""

    steps: int
    batch: int


AMOUNTS = {"few": Amount(20, 4), "many": Amount(100, 8)}
CASES = (
    ("few", "tiny"),
    ("few", "small"),
    ("few", "medium"),
    ("many", "small"),
    ("many", "medium"),
)
# SmolLM2's steps are dear: it goes with two of the seeds, and in the reference.
DEAR, DEAR_SEEDS = ("few", "smollm2"), (0, 1)
# By case, of the prompt and of all weights: the best of those tried.
RATES = {
    ("few", "tiny"): {"prompt": 1e-1, "full": 3e-3},
    ("few", "small"): {"prompt": 3e-2, "full": 1e-3},
    ("few", "medium"): {"prompt": 3e-2, "full": 3e-4},
    ("few", "smollm2"): {"prompt": 1e-1, "full": 3e-4},
    ("many", "small"): {"prompt": 1e-1, "full": 3e-3},
    ("many", "medium"): {"prompt": 1e-1, "full": 1e-3},
}
TRIED = {
    "tiny": {"prompt": (1e-2, 3e-2, 1e-1, 3e-1), "full": (1e-3, 3e-3, 1e-2, 3e-2)},
    "small": {"prompt": (1e-2, 3e-2, 1e-1, 3e-1), "full": (3e-4, 1e-3, 3e-3, 1e-2)},
    "medium": {"prompt": (1e-2, 3e-2, 1e-1, 3e-1), "full": (1e-4, 3e-4, 1e-3, 3e-3)},
    "smollm2": {"prompt": (1e-2, 3e-2, 1e-1, 3e-1), "full": (3e-5, 1e-4, 3e-4, 1e-3)},
}


class Reader(NamedTuple):
    """A pretrained decoder and its tokenizer."""

    decoder: LlamaForCausalLM
    tokenizer: Tokenizer


def data_digest() -> str:
    """Summarize what a record depends on.

    Returns:
        A SHA-256 of those of Shakespeare, Milton and SmolLM2's file. It needs none of them on this
        machine: their readers refuse all others.
    """
    parts = data.SHAKESPEARE_SHA256 + plays.MILTON_SHA256 + decoder.SHA256
    return hashlib.sha256(parts.encode()).hexdigest()


def run(seed: int) -> dict[str, Any]:
    """Tune the book's own decoders in every way, and measure on Book X.

    Args:
        seed: of the windows to learn from, their order, and the prompts' starts.

    Returns:
        ``short``, as :func:`run_short`; by amount and size, as :func:`compared`, ``few`` and
        ``many``.
    """
    books = plays.milton()
    found = {"short": run_short(seed), "few": {}, "many": {}}
    for amount, name in CASES:
        found[amount][name] = compared(reader(name), books, amount, name, seed)
    return found


def reference() -> list[dict[str, float]]:
    """Tune SmolLM2 in every way with seeds 0 and 1, and measure it as :func:`compared`."""
    books, (amount, name) = plays.milton(), DEAR
    return [compared(reader(name), books, amount, name, seed) for seed in DEAR_SEEDS]


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live: a decoder of 60 000 numbers, few windows.

    Args:
        seed: as for :func:`run`.

    Returns:
        Bits per character by method, ``none``, ``prompt`` and ``full``, and ``closed``.
    """
    found = compared(reader("tiny"), plays.milton(), "few", "tiny", seed)
    return {key: found[key] for key in ("none", *METHODS, "closed")}


def reader(name: str) -> Reader:
    """Get a pretrained decoder of its own, and its tokenizer.

    Args:
        name: ``"tiny"``, ``"small"`` or ``"medium"``, trained now if they are not in the cache,
            or ``"smollm2"``.

    Returns:
        The decoder, all weights trainable, and what cuts texts for it.
    """
    if name == "smollm2":
        return Reader(decoder.pretrained_decoder(), decoder.tokenizer().backend_tokenizer)
    tokenizer = plays.byte_pairs(plays.shakespeare())
    size = SIZES[name]
    return Reader(small_decoders.pretrained(size, TRAININGS[size]), tokenizer)


def compared(
    read: Reader, books: plays.Books, amount: str, name: str, seed: int
) -> dict[str, float]:
    """Measure a decoder as it is, and tuned in both ways.

    Args:
        read: the decoder, which is tuned in place at the end.
        books: to learn from and to measure on.
        amount: ``"few"`` or ``"many"``.
        name: of the decoder, for its rates.
        seed: as for :func:`run`.

    Returns:
        Bits per character on 48 windows of Book X: ``none``, ``prompt``, ``full``; ``closed``, the
        share of the gain of all weights that the prompt has; by method the numbers that were
        trained, such as ``trainable_full``, and the seconds of a step, such as ``seconds_full``.
    """
    test = spread(plays.windows(plays.tokens(read.tokenizer, books.held_out), LENGTH), MEASURED)
    found = {"none": bits(PromptedDecoder(read.decoder, None), read.tokenizer, test)}
    rows = drawn(read.tokenizer, books.tuning, AMOUNTS[amount], seed)
    for method in METHODS:
        rate = RATES[amount, name][method]
        model, seconds = tuned(read.decoder, rows, method, rate, AMOUNTS[amount], seed)
        found[method] = bits(model, read.tokenizer, test)
        trained = [p.numel() for p in model.parameters() if p.requires_grad]
        found |= {f"trainable_{method}": sum(trained), f"seconds_{method}": seconds}
    closed = (found["none"] - found["prompt"]) / (found["none"] - found["full"])
    return found | {"closed": closed}


def tuned(
    network: LlamaForCausalLM, rows: Tensor, method: str, rate: float, amount: Amount, seed: int
) -> tuple[PromptedDecoder, float]:
    """Tune in one way.

    Args:
        network: the decoder; frozen, and as it was, where a prompt is trained; in place otherwise.
        rows: windows to learn from, [steps * batch, T].
        method: ``"prompt"`` or ``"full"``.
        rate: the largest step size.
        amount: how many windows a step has.
        seed: of the order of the windows and the start of the prompt.

    Returns:
        The tuned model, and seconds of a step.

    Raises:
        ValueError: if the method is neither of the two.
    """
    if method not in METHODS:
        raise ValueError(f"method: must be one of {METHODS}, got {method!r}")
    network.requires_grad_(method == "full")
    prompt = None
    if method == "prompt":
        generator = torch.Generator().manual_seed(seed + 20_000)
        table = network.get_input_embeddings().weight
        prompt = SoftPrompt(vocabulary_start(table, VECTORS, generator))
    model = PromptedDecoder(network, prompt)
    setting = Setting(epochs=1, batch=amount.batch, rate=rate)
    return model, completion.fit(model, whole(rows), setting, seed + 30_000).seconds


def bits(model: PromptedDecoder, tokenizer: Tokenizer, rows: Tensor) -> float:
    """Measure a model on windows, of which the first piece is given.

    Args:
        model: with a prompt or without one.
        tokenizer: of its pieces.
        rows: [n, T] int64, on the CPU.

    Returns:
        The losses of the other pieces in bits, over their characters.
    """
    total = completion.nats(model, whole(rows), 16).total
    return total / math.log(2) / plays.characters(tokenizer, rows[:, 1:])


def whole(rows: Tensor) -> Examples:
    """Make examples of windows [n, T]: all is seen, and all but the first piece is to be learnt.

    With a prompt the first piece could be predicted, too; no method is asked for it.
    """
    ids = rows.to(device())
    labels = ids.clone()
    labels[:, 0] = IGNORED
    return Examples(ids, torch.ones_like(ids), labels)


def drawn(tokenizer: Tokenizer, text: str, amount: Amount, seed: int) -> Tensor:
    """Draw windows of a text without replacement.

    Args:
        tokenizer: of the decoder that learns from them.
        text: of which.
        amount: how many.
        seed: of the draw.

    Returns:
        [steps * batch, T] int64, on the CPU.

    Raises:
        ValueError: if the text has fewer windows.
    """
    rows = plays.windows(plays.tokens(tokenizer, text), LENGTH)
    wanted = amount.steps * amount.batch
    if wanted > len(rows):
        raise ValueError(f"amount: must be at most {len(rows)} windows, got {wanted}")
    generator = torch.Generator().manual_seed(seed + 10_000)
    return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:wanted]]


def spread(rows: Tensor, n: int) -> Tensor:
    """Choose windows at equal distances, the first one among them.

    Args:
        rows: [m, T].
        n: how many, from 1 to m.

    Returns:
        [n, T].

    Raises:
        ValueError: if there are fewer.
    """
    if not 1 <= n <= len(rows):
        raise ValueError(f"n: must be from 1 to {len(rows)}, got {n}")
    return rows[torch.arange(n, device="cpu") * len(rows) // n]


def trial(amount: str, name: str, method: str, seed: int = 1000) -> dict[float, float]:
    """Try the rates of one method in one case, as they were chosen.

    Args:
        amount: ``"few"`` or ``"many"``.
        name: of the decoder.
        method: of tuning.
        seed: as for :func:`run`.

    Returns:
        By rate, bits per character on 48 windows of Book IX.
    """
    books, found = plays.milton(), {}
    for rate in TRIED[name][method]:
        read = reader(name)
        test = spread(plays.windows(plays.tokens(read.tokenizer, books.choosing), LENGTH), MEASURED)
        rows = drawn(read.tokenizer, books.tuning, AMOUNTS[amount], seed)
        model, _ = tuned(read.decoder, rows, method, rate, AMOUNTS[amount], seed)
        found[rate] = bits(model, read.tokenizer, test)
    return found
