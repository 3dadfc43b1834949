"""Three more ways from a record to a sentence, on a tiny decoder: what each trains, and how."""

import copy
import functools
import math
from statistics import fmean

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradbook.experiments import lora_table_to_text as experiment
from gradbook.experiments import table_to_text
from gradbook.language import airports, completion, decoder, tuning
from gradbook.peft import adalora
from gradbook.peft.dora import DoRALinear
from gradbook.peft.injection import count
from gradbook.peft.lora import LoRALinear
from gradbook.peft.svd_linear import SVDLinear, svd_layers

LETTERS = "\n" + "".join(map(chr, range(32, 127)))
# Layers, width, that of the keys, of the feed-forward branches, and heads; the real ones SmolLM2's.
TINY, REAL = (2, 32, 8, 10, 4), (30, 576, 192, 1_536, 9)
TRAINED = {
    "trainable",
    "nats",
    "bleu",
    "chrf",
    "rules",
    "all",
    "kept",
    "late_loss",
    "seconds",
    "frozen",
}
# Read once for all tests.
AIRPORTS = functools.cache(airports.airports)
COURSE = tuning.Course([4.0, 1.0, 2.0, 6.0, 7.0], 0.25)
MEASURED = {"nats": 1.5, "bleu": 2.5}
WANTED = {
    "lora 8": (LoRALinear, 8, 0.5),
    "dora 2": (DoRALinear, 2, 2.0),
    "adalora 2": (SVDLinear, 3, 4 / 3),
}


def counts(layers, d, keys, *_):
    """What every way trains, as a formula: of maps [d, d] and [keys, d] in every layer."""
    pair = layers * (3 * d + keys)
    return {
        "lora 8": 8 * pair,
        "dora 2": 2 * pair + layers * (d + keys),
        "adalora 2": 3 * pair + layers * 2 * 3,
    }


def config(words, layers, d, keys, inner, heads):
    return LlamaConfig(
        vocab_size=words,
        hidden_size=d,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys * heads // d,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=words - 1,
    )


@functools.cache
def letters():
    """A tokenizer of which a token is a letter, and every other letter a blank."""
    vocabulary = {letter: i for i, letter in enumerate([*LETTERS, "<end>"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, " "))
    single = tokenizers.Regex(r"[\s\S]")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(single, "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@functools.cache
def network():
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config(len(LETTERS) + 1, *TINY)).double().eval()
    with torch.no_grad():
        for name, part in model.named_parameters():
            part.normal_(float("norm" in name), 0.3, generator=generator)
    return model


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Puts a tiny decoder in the place of the pretrained one, and shortens what it writes."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(decoder, "pretrained_decoder", lambda: copy.deepcopy(network()))
    monkeypatch.setattr(decoder, "tokenizer", letters)
    monkeypatch.setattr(airports, "airports", AIRPORTS)
    monkeypatch.setattr(table_to_text, "LONGEST", 220)
    monkeypatch.setattr(table_to_text, "STEPS", 6)
    monkeypatch.setattr(experiment, "SHORT", experiment.Scale(8, 2))


@pytest.fixture
def unmeasured(monkeypatch):
    """Keeps what is measured in the place of measuring."""
    seen = []

    def measured(*arguments):
        seen.append(arguments)
        return MEASURED, ["a text"]

    monkeypatch.setattr(table_to_text, "measured", measured)
    return seen


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(model, *arguments, **more):
        seen.append((model, arguments, more))
        return COURSE

    monkeypatch.setattr(completion, "fit", fit)
    # Nothing takes the steps that an allocator waits for.
    monkeypatch.setattr(adalora.Allocator, "__exit__", lambda *_: None)
    return seen


def drawn(seed, rows, test=1):
    return table_to_text.drawn(seed, table_to_text.Scale(rows, test))


def built(name, unmeasured, fits, rows=8, seed=3):
    """A model as a way leaves it before training, and what is said of it."""
    found, _ = experiment.tuned(name, *drawn(seed, rows), seed)
    return unmeasured.pop()[0], found, fits.pop()


def states(model):
    return {name: part.clone() for name, part in model.state_dict().items()}


def moved(before, after):
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


# The ways


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_way_trains_as_many_numbers_as_its_formula_says(name, unmeasured, fits, monkeypatch):
    model, found, _ = built(name, unmeasured, fits)
    assert found["trainable"] == count(model)[0] == counts(*TINY)[name]
    with torch.device("meta"):
        real = LlamaForCausalLM(config(49_152, *REAL))
    monkeypatch.setattr(decoder, "pretrained_decoder", lambda: real)
    monkeypatch.setattr(table_to_text, "digest", lambda _: "")
    assert built(name, unmeasured, fits)[1]["trainable"] == counts(*REAL)[name]


def test_real_counts():
    found = counts(*REAL)
    assert found == {"lora 8": 460_800, "dora 2": 138_240, "adalora 2": 172_980}
    # Two triplets of a map on average stay: LoRA's numbers of the other record, and those of E.
    assert found["adalora 2"] * 2 / 3 == 115_200 + 60 * 2
    assert list(found) == list(experiment.WAYS) == list(WANTED)


@pytest.mark.parametrize("name", experiment.WAYS)
def test_additions_have_their_places_ranks_and_factors(name, unmeasured, fits):
    kind, rank, factor = WANTED[name]
    model, *_ = built(name, unmeasured, fits)
    kinds = LoRALinear, SVDLinear
    found = {n: m for n, m in model.decoder.named_modules() if isinstance(m, kinds)}
    assert list(found) == [
        f"model.layers.{i}.self_attn.{part}_proj" for i in range(2) for part in "qv"
    ]
    for module in found.values():
        assert type(module) is kind
        assert len(module.Q if kind is SVDLinear else module.A) == rank
        assert module.scaling == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_way_starts_as_the_decoder_and_depends_on_its_seed_alone(name, unmeasured, fits):
    model, *_ = built(name, unmeasured, fits)
    words, rows, _ = drawn(0, 3)
    batch = table_to_text.pairs(words, rows)
    plain = experiment.PromptedDecoder(network(), None)
    # DoRA adds its bias, here none, and its product in another order: rounding of float64.
    assert model.loss(*batch).item() == pytest.approx(plain.loss(*batch).item(), rel=1e-12)
    torch.randn(3)
    assert not moved(states(model), states(built(name, unmeasured, fits)[0]))
    other = moved(states(model), states(built(name, unmeasured, fits, seed=4)[0]))
    parts = {part.rsplit(".", 1)[1] for part in other}
    assert parts == ({"P", "Q"} if name == "adalora 2" else {"A"})


def test_what_is_shared_with_the_other_comparison():
    other = table_to_text.WAYS["lora"]
    assert (other.rate, other.batch) == (experiment.RATE, experiment.BATCH)
    # LoRA of rank 2 there has the factor of rank 2 here.
    assert experiment.ALPHA / 2 == 2 * table_to_text.RANK / table_to_text.RANK
    assert experiment.SEEDS == table_to_text.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.run.__defaults__ == table_to_text.run.__defaults__ == ((200, 60),)
    assert experiment.data_digest() == airports.SHA256


# How they train


def test_a_training_has_the_records_the_rate_and_the_order_of_the_other_comparison(
    unmeasured, fits
):
    words, rows, test = drawn(3, 8)
    table_to_text.tuned("lora", words, rows, test, 3)
    _, (pairs, setting, seed), _ = fits.pop()
    assert (setting, seed) == (tuning.Setting(1, 4, 1e-2), 30_003)
    for name in experiment.WAYS:
        found, texts = experiment.tuned(name, words, rows, test, 3)
        model, (own, *rest), more = fits.pop()
        assert rest == [setting, seed]
        assert all(torch.equal(a, b) for a, b in zip(own, pairs, strict=True))
        assert set(more) == ({"penalty", "after"} if name == "adalora 2" else set())
        # The last half of the steps, what the course says of a step, and what is measured.
        assert (found["late_loss"], found["seconds"], found["frozen"]) == (5.0, 0.25, 1.0)
        assert {key: found[key] for key in MEASURED} == MEASURED
        assert texts == ["a text"]
        assert unmeasured[-1] == (model, words, test)


@pytest.mark.parametrize(
    ("n", "schedule"),
    [
        (200, adalora.Schedule(8, 10, 20, 50)),
        (40, adalora.Schedule(8, 2, 4, 10)),
        (9, adalora.Schedule(8, 0, 1, 3)),
    ],
)
def test_adaloras_schedule_and_penalty(n, schedule, unmeasured, fits, monkeypatch):
    made = []

    class Noted(adalora.Allocator):
        def __init__(self, model, schedule):
            super().__init__(model, schedule)
            made.append((self, model, schedule))

    monkeypatch.setattr(adalora, "Allocator", Noted)
    model, _, (_, _, more) = built("adalora 2", unmeasured, fits, n)
    ((allocator, allocated, found),) = made
    assert allocated is model
    assert found == schedule
    # Three of each of four maps at first; two thirds stay.
    assert allocator.first == 3 * 4 == schedule.last * 3 / 2
    assert more["after"] == allocator.step
    penalties = []
    for module in svd_layers(model).values():
        for rows in (module.P.T, module.Q):
            eye = torch.eye(3, dtype=torch.float64)
            penalties.append(((rows @ rows.T - eye) ** 2).sum().item())
    assert len(penalties) == 8
    # float64; near 0.3, as every row is short at the start.
    assert more["penalty"]().item() == pytest.approx(0.1 * fmean(penalties), rel=1e-12)


def test_adalora_keeps_two_thirds_of_its_triplets(unmeasured):
    experiment.tuned("adalora 2", *drawn(3, 12), 3)
    left = svd_layers(unmeasured[0][0]).values()
    assert sum(int((module.E != 0).sum()) for module in left) == 8


@pytest.mark.parametrize("name", experiment.WAYS)
def test_training_moves_what_trains_and_nothing_else(name, unmeasured):
    train, seen = experiment.WAYS[name].train, []

    def watched(model, *arguments):
        seen.append(states(model))
        return train(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiment.WAYS, name, experiment.WAYS[name]._replace(train=watched))
        found, _ = experiment.tuned(name, *drawn(3, 12), 3)
    model = unmeasured[0][0]
    names = {part for part, p in model.named_parameters() if p.requires_grad}
    changed = moved(seen[0], states(model))
    # A map may lose all of its triplets, whose E are then as at the start.
    assert changed <= names
    assert all(part.endswith(".E") for part in names - changed)
    assert name == "adalora 2" or changed == names
    assert found["frozen"] == 1.0


@pytest.mark.parametrize("name", experiment.WAYS)
@pytest.mark.parametrize("which", [0, -1])
def test_a_frozen_number_that_moves_is_seen(name, which, unmeasured, monkeypatch):
    def train(model, *_):
        with torch.no_grad():
            [p for p in model.parameters() if not p.requires_grad][which].view(-1)[-1] += 1e-3
        return COURSE

    monkeypatch.setitem(experiment.WAYS, name, experiment.WAYS[name]._replace(train=train))
    assert experiment.tuned(name, *drawn(0, 2), 0)[0]["frozen"] == 0.0


def test_a_seed_repeats_itself():
    words, rows, test = drawn(0, 8)

    def found(name, seed):
        result, texts = experiment.tuned(name, words, rows, test, seed)
        return result["nats"], result["late_loss"], texts

    first = found("adalora 2", 1)
    torch.randn(3)
    assert found("adalora 2", 1) == first
    assert found("adalora 2", 2)[0] != first[0]


# A whole seed


def test_a_run_has_every_way_and_what_they_wrote():
    found = experiment.run(2, experiment.Scale(8, 5))
    assert set(found) == {"short", "ways", "texts"}
    assert list(found["ways"]) == list(found["texts"]) == list(experiment.WAYS)
    for name, way in found["ways"].items():
        assert set(way) == TRAINED
        assert way["frozen"] == 1.0
        assert way["trainable"] == counts(*TINY)[name]
        assert math.isfinite(way["late_loss"])
    assert len({way["nats"] for way in found["ways"].values()}) == 3
    assert all(len(lines) == 4 for lines in found["texts"].values())
    assert set(found["short"]) == {"late_loss", "nats"}
    assert found["short"]["nats"] != found["ways"]["dora 2"]["nats"]


def test_a_run_has_the_records_of_the_other_comparison(monkeypatch):
    calls, seen = [], []

    def tuned(name, *arguments):
        calls.append((name, *arguments))
        return {"late_loss": len(calls), "nats": 0.5}, [f"{name} {i}" for i in range(9)]

    def draw(*arguments):
        seen.append(arguments)
        return "words", f"rows of {arguments}", f"test of {arguments}"

    monkeypatch.setattr(experiment, "tuned", tuned)
    monkeypatch.setattr(table_to_text, "drawn", draw)
    scale = experiment.Scale(8, 5)
    found = experiment.run(7, scale)
    assert seen == [(7, scale), (7, experiment.SHORT)]
    long, short = (("words", f"rows of {x}", f"test of {x}", 7) for x in seen)
    assert calls == [*((name, *long) for name in experiment.WAYS), ("dora 2", *short)]
    for i, name in enumerate(experiment.WAYS):
        assert found["ways"][name] == {"late_loss": i + 1, "nats": 0.5}
        assert found["texts"][name] == [f"{name} {i}" for i in range(4)]
    assert found["short"] == {"late_loss": 4, "nats": 0.5}
