"""From a table to a sentence: five ways to bring SmolLM2 to a style that it has not seen.

The decoder reads an airport's record and is to write the sentence that a rule of ours makes of it:
see :mod:`gradbook.language.airports`. A hard prompt tells the rules and shows two examples; the
other ways learn from 200 records, each seen once, and are told nothing. A prefix of ten positions
in each of 30 layers and LoRA of rank two on the maps to queries and values have 115 200 numbers
each; a soft prompt of 20 vectors has a tenth of them. A step takes four records, of all weights
twelve. A seed draws the records to learn from, their order, and what starts at random; all ways of
a seed share them. All are measured on the same 60 records. Hard prompt and all weights, which are
dear, are measured with one seed.

The rates were chosen in 20 steps on other draws from the pool, with seed 1000: of four, each about
three times the one before, that of the least loss in the last ten steps; of three for all weights.
None is the first or the last that was tried. This choice is not on record.
"""

import hashlib
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import sacrebleu
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from gradbook.language import airports, completion, decoder
from gradbook.language.airports import Airport
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.language.tuning import Setting
from gradbook.peft.injection import count, inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.prefix import prefix
from gradbook.peft.prompt_starts import vocabulary_start
from gradbook.peft.prompts import SoftPrompt
from gradbook.peft.selection import named, train_only

SEEDS = tuple(range(5))
# Of a step; of one of all weights, where AdamW costs as much as a few rows; measured together.
BATCH, LARGE, MANY = 4, 12, 30
VECTORS, POSITIONS, RANK = 20, 10, 2
LONGEST, STEPS = 95, 45  # of a record, its sentence and the end; of a sentence
SHOWN = 4  # completions that are kept
INSTRUCTION = (
    "Write one sentence about the airport of each record: country, city, a colon and the name. "
    'Below 500 feet it "lies low", above 4000 it "stands high", else it "lies". Round the '
    "elevation to hundreds of feet. A negative latitude is south of the equator.\n\n"
)

data_digest = airports.data_digest


class Scale(NamedTuple):
    """How many records are learnt from, once each, and how many are tested on."""

    rows: int
    test: int


TABLE, SHORT = Scale(200, 60), Scale(8, 4)


def soft_prompt(model: LlamaForCausalLM, generator: torch.Generator) -> PromptedDecoder:
    """Put 20 vectors in front of what is read; they start as embeddings of tokens."""
    table = model.get_input_embeddings().weight
    found = PromptedDecoder(model, SoftPrompt(vocabulary_start(table, VECTORS, generator)))
    train_only(found, lambda name, p: name.startswith("prompt."))
    return found


def deep_prefix(model: LlamaForCausalLM, generator: torch.Generator) -> PromptedDecoder:
    """Put ten keys and values in front of those of every layer."""
    prefix(model, POSITIONS, generator)
    return PromptedDecoder(model, None)


def low_rank(model: LlamaForCausalLM, generator: torch.Generator) -> PromptedDecoder:
    """Add a product of rank two to the maps to queries and to values of every layer."""
    where = named(r".*\.(q_proj|v_proj)")
    inject(model, where, lambda layer: LoRALinear(layer, RANK, 2 * RANK, generator))
    return PromptedDecoder(model, None)


def everything(model: LlamaForCausalLM, _: torch.Generator) -> PromptedDecoder:
    """Train all weights."""
    return PromptedDecoder(model, None)


class Way(NamedTuple):
    """A way to tune.

    Attributes:
        rate: the largest step size.
        batch: records of a step.
        prepare: makes a model of a decoder, with a generator; what is to be trained is trainable.
    """

    rate: float
    batch: int
    prepare: Callable[[LlamaForCausalLM, torch.Generator], PromptedDecoder]


# What the trained ways are called, and in which order they stand in a table.
WAYS = {
    "prompt": Way(3e-2, BATCH, soft_prompt),
    "prefix": Way(1e-1, BATCH, deep_prefix),
    "lora": Way(1e-2, BATCH, low_rank),
    "full": Way(1e-4, LARGE, everything),
}
# The ways that every seed goes; the others go with the first alone.
SMALL = ("prompt", "prefix", "lora")


def run(seed: int, scale: Scale = TABLE) -> dict[str, Any]:
    """Tune in every small way, and measure on records to test on.

    Args:
        seed: of the records to learn from, their order, and what starts at random.
        scale: how much to learn from, and to test on.

    Returns:
        ``short``, as :func:`run_short`; ``ways``, by way what :func:`tuned` says; and ``texts``, by
        way the first four completions.
    """
    words, rows, test = drawn(seed, scale)
    found, texts = {}, {}
    for name in SMALL:
        found[name], lines = tuned(name, words, rows, test, seed)
        texts[name] = lines[:SHOWN]
    return {"short": run_short(seed), "ways": found, "texts": texts}


def reference(scale: Scale = TABLE) -> dict[str, Any]:
    """Measure what is compared with the small ways, with the first seed.

    Args:
        scale: how much to learn from, and to test on.

    Returns:
        ``ways`` and ``texts`` as of :func:`run`, for the hard prompt and all weights; and the
        ``signatures`` of the measures BLEU and chrF.
    """
    seed = SEEDS[0]
    words, rows, test = drawn(seed, scale)
    found, texts = {}, {}
    found["hard"], texts["hard"] = shown(words, rows[:2], test)
    found["full"], texts["full"] = tuned("full", words, rows, test, seed)
    few = {name: lines[:SHOWN] for name, lines in texts.items()}
    return {"ways": found, "texts": few, "signatures": signatures()}


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live: LoRA in two steps on eight records.

    Args:
        seed: as for :func:`run`.

    Returns:
        The ``late_loss`` of the second step, and ``nats`` per token on four records to test on.
    """
    words, rows, test = drawn(seed, SHORT)
    found, _ = tuned("lora", words, rows, test, seed)
    return {"late_loss": found["late_loss"], "nats": found["nats"]}


def drawn(
    seed: int, scale: Scale
) -> tuple[PreTrainedTokenizerFast, tuple[Airport, ...], tuple[Airport, ...]]:
    """Read the tokenizer, draw records to learn from by a seed, and take those to test on."""
    split = airports.split(airports.airports())
    rows = airports.drawn(split.pool, scale.rows, seed + 10_000)
    return decoder.tokenizer(), rows, split.test[: scale.test]


def shown(
    words: PreTrainedTokenizerFast, pair: Sequence[Airport], test: Sequence[Airport]
) -> tuple[dict[str, Any], list[str]]:
    """Measure the decoder as it is, behind a hard prompt that shows a pair of records.

    Returns:
        What :func:`measured` says, with no number trained; and the completions.
    """
    model = PromptedDecoder(decoder.pretrained_decoder(), None)
    front = INSTRUCTION + "".join(worked(airport, words.eos_token) for airport in pair)
    found, texts = measured(model, words, test, front)
    return {"trainable": 0, **found}, texts


def tuned(
    name: str,
    words: PreTrainedTokenizerFast,
    rows: Sequence[Airport],
    test: Sequence[Airport],
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Tune in one way, and measure.

    Args:
        name: of the way.
        words: the tokenizer.
        rows: records to learn from.
        test: records to measure on.
        seed: of the order of the rows and of what starts at random.

    Returns:
        ``trainable`` numbers, ``late_loss`` in the last half of the steps, in nats per token,
        ``seconds`` of a step, whether the ``frozen`` numbers of the decoder stayed the same, and
        what :func:`measured` says; and the completions.
    """
    way = WAYS[name]
    generator = torch.Generator().manual_seed(seed + 20_000)
    model = way.prepare(decoder.pretrained_decoder(), generator)
    before = digest(model)
    course = completion.fit(
        model, pairs(words, rows), Setting(1, way.batch, way.rate), seed + 30_000
    )
    half = course.losses[len(course.losses) // 2 :]
    found, texts = measured(model, words, test)
    return {
        "trainable": count(model)[0],
        "late_loss": sum(half) / len(half),
        "seconds": course.seconds,
        "frozen": float(digest(model) == before),
        **found,
    }, texts


def measured(
    model: PromptedDecoder,
    words: PreTrainedTokenizerFast,
    test: Sequence[Airport],
    front: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """Let a model write sentences, and compare them with ours.

    Args:
        model: reads a record and goes on.
        words: the tokenizer.
        test: the records.
        front: what stands before each record.

    Returns:
        ``nats`` per token of our sentences and their ends; of the model's own, written greedily,
        ``bleu`` and ``chrf`` of all together, from 0 to 100, the shares of sentences that keep
        each of the ``rules`` and ``all`` of them, and their mean ``kept``; and those completions.
    """
    nats = completion.nats_per_token(model, pairs(words, test, front), MANY)
    sources = [front + source(airport) for airport in test]
    texts = completion.completions(model, words, sources, STEPS, MANY)
    texts = [" ".join(text.split()) for text in texts]
    checks = [airports.rules_kept(*pair) for pair in zip(test, texts, strict=True)]
    rules = {rule: fmean([check[rule] for check in checks]) for rule in checks[0]}
    ours = [airports.sentence(airport) for airport in test]
    return {
        "nats": nats,
        "bleu": sacrebleu.corpus_bleu(texts, [ours]).score,
        "chrf": sacrebleu.corpus_chrf(texts, [ours]).score,
        "rules": rules,
        "all": fmean([all(check.values()) for check in checks]),
        "kept": fmean(list(rules.values())),
    }, texts


def pairs(
    words: PreTrainedTokenizerFast, rows: Sequence[Airport], front: str = ""
) -> completion.Examples:
    """Turn records into sources, behind what stands in front of each, and our sentences."""
    sources = [front + source(airport) for airport in rows]
    longest = LONGEST + len(words(front)["input_ids"])
    return completion.examples(words, sources, [airports.sentence(row) for row in rows], longest)


def source(airport: Airport) -> str:
    """Write what a model reads: the record, and the end of its line."""
    return f"{airports.table(airport)}\n"


def worked(airport: Airport, end: str) -> str:
    """Write an example of a hard prompt: a record, its sentence, and the end that closes it."""
    return f"{source(airport)}{airports.sentence(airport)}{end}\n\n"


def digest(model: nn.Module) -> str:
    """Summarize the parameters that do not train, in their order, as a SHA-256."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            found.update(parameter.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def signatures() -> dict[str, str]:
    """Say, in sacrebleu's words, how BLEU and chrF are computed."""
    one = ["a"], [["a"]]
    found = {}
    for name, measure in {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}.items():
        # Only after a use is the number of references known.
        measure.corpus_score(*one)
        found[name] = str(measure.get_signature())
    return found
