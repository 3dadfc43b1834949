"""Tuning to Milton, on tiny decoders: what trains, which windows count, and what is compared."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from gradbook import data
from gradbook.experiments import prompt_scale as experiment
from gradbook.experiments.prompt_scale import Amount, Reader
from gradbook.language import completion, decoder, plays, pretraining, small_decoders, tuning
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.language.small_decoders import Size
from gradbook.peft.prompts import IGNORED

VERSE = "the then thee there other, the moth. the the\nthe heath " * 12
TINY = Size("tiny", 8, 1, 2)
COLUMNS = {"none", "prompt", "full", "closed"} | {
    f"{kind}_{method}" for kind in ("trainable", "seconds") for method in ("prompt", "full")
}
VOCABULARY = plays.byte_pairs(VERSE, 100)
SMALLEST = Amount(3, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def read(name="small"):
    """A tiny decoder of its own, by name; far from its start, so that it errs."""
    drawn = generator(len(name))
    network = small_decoders.untrained(TINY, drawn, 100)
    with torch.no_grad():
        for part in network.parameters():
            part.add_(0.3 * torch.randn(part.shape, generator=drawn))
    return Reader(network.eval(), VOCABULARY)


def states(model):
    return {name: part.clone() for name, part in model.state_dict().items()}


def moved(before, model):
    return {
        name for name, part in model.state_dict().items() if not torch.equal(before[name], part)
    }


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Stands in for Milton and the decoders, and shortens everything."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    half = len(VERSE) // 2
    books = plays.Books(VERSE, VERSE[half:], VERSE[:half].upper())
    monkeypatch.setattr(plays, "milton", lambda: books)
    monkeypatch.setattr(experiment, "reader", read)
    monkeypatch.setattr(experiment, "LENGTH", 8)
    monkeypatch.setattr(experiment, "VECTORS", 3)
    monkeypatch.setattr(experiment, "MEASURED", 5)
    amounts = {"few": SMALLEST, "many": Amount(4, 3)}
    monkeypatch.setattr(experiment, "AMOUNTS", amounts)
    return books


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(*arguments):
        seen.append(arguments)
        return tuning.Course([1.0], 0.25)

    monkeypatch.setattr(completion, "fit", fit)
    return seen


# Windows


def test_windows_are_drawn_by_a_seed_without_replacement():
    ids = plays.windows(plays.tokens(VOCABULARY, VERSE), 8)
    rows = experiment.drawn(VOCABULARY, VERSE, SMALLEST, 3)
    order = torch.randperm(len(ids), generator=generator(10_003))
    assert torch.equal(rows, ids[order[:6]])
    assert not torch.equal(rows, experiment.drawn(VOCABULARY, VERSE, SMALLEST, 4))
    with pytest.raises(ValueError, match=f"^amount: must be at most {len(ids)} windows"):
        experiment.drawn(VOCABULARY, VERSE, Amount(1, len(ids) + 1), 3)
    assert len(experiment.drawn(VOCABULARY, VERSE, Amount(1, len(ids)), 3)) == len(ids)


@pytest.mark.parametrize("m", [1, 5, 7, 432])
def test_windows_to_measure_on_are_spread_over_the_text(m):
    rows = torch.arange(m)[:, None]
    for n in {1, min(5, m), m}:
        found = experiment.spread(rows, n).flatten().tolist()
        assert found == [i * m // n for i in range(n)]
        assert len(set(found)) == n
    for n in (0, m + 1):
        with pytest.raises(ValueError, match=f"^n: must be from 1 to {m}, got {n}"):
            experiment.spread(rows, n)


def test_all_pieces_but_the_first_are_labelled():
    rows = torch.tensor([[5, 6, 7], [8, 9, 5]])
    ids, mask, labels = experiment.whole(rows)
    assert torch.equal(ids, rows)
    assert (mask == 1).all()
    assert labels.tolist() == [[IGNORED, 6, 7], [IGNORED, 9, 5]]
    assert rows[0, 0] == 5


def test_bits_without_a_prompt_are_those_of_pretraining():
    network, tokenizer = read()
    rows = plays.windows(plays.tokens(tokenizer, VERSE), 8)[:20]
    found = experiment.bits(PromptedDecoder(network, None), tokenizer, rows)
    # Both networks are float32.
    expected = pretraining.bits_per_character(network, tokenizer, rows)
    assert found == pytest.approx(expected, rel=1e-5)


def test_bits_behind_a_prompt_are_those_of_words_in_its_place():
    network, tokenizer = read()
    rows = plays.windows(plays.tokens(tokenizer, VERSE), 8)[:20]
    words = torch.tensor([[97, 3, 99]])
    prompt = experiment.SoftPrompt(network.get_input_embeddings().weight[words[0]])
    longer = torch.cat([words.expand(20, 3), rows], 1)
    losses = pretraining.next_piece_losses(network, longer)[:, 3:]
    count = sum(len(tokenizer.decode(row[1:].tolist())) for row in rows)
    found = experiment.bits(PromptedDecoder(network, prompt), tokenizer, rows)
    assert found == pytest.approx(losses.sum().item() / math.log(2) / count, rel=1e-5)


# One training


def test_a_prompt_trains_alone_and_all_weights_train_without_one():
    rows = experiment.drawn(VOCABULARY, VERSE, SMALLEST, 0)
    network = read().decoder
    before = states(network)
    model, _ = experiment.tuned(network, rows, "prompt", 1e-2, SMALLEST, 4)
    assert moved(before, network) == set()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["prompt.vectors"]
    table = network.get_input_embeddings().weight
    start = table[torch.randperm(100, generator=generator(20_004))[:3]]
    assert model.prompt.vectors.shape == (3, 8)
    assert not torch.equal(model.prompt.vectors, start)
    # Three steps of AdamW at most, of 0.01 each and hardly more.
    assert (model.prompt.vectors - start).abs().max() < 0.031
    model, _ = experiment.tuned(network, rows, "full", 1e-2, SMALLEST, 0)
    assert model.prompt is None
    assert model.decoder is network
    assert moved(before, network) == set(before)


def test_a_training_has_its_windows_its_setting_and_the_order_of_its_seed(fits):
    rows = experiment.drawn(VOCABULARY, VERSE, SMALLEST, 0)
    for method in experiment.METHODS:
        model, seconds = experiment.tuned(read().decoder, rows, method, 2e-3, SMALLEST, 5)
        trained, examples, setting, seed = fits.pop()
        assert trained is model
        assert torch.equal(examples.ids, rows)
        assert torch.equal(examples.labels, experiment.whole(rows).labels)
        assert setting == tuning.Setting(1, 2, 2e-3)
        assert (seed, seconds) == (30_005, 0.25)
    with pytest.raises(ValueError, match="^method: "):
        experiment.tuned(read().decoder, rows, "none", 1e-3, SMALLEST, 0)


# A comparison


@pytest.mark.parametrize("amount", ["few", "many"])
def test_a_comparison_measures_every_method_on_the_book_held_out(amount, tiny):
    network = read()
    found = experiment.compared(copy.deepcopy(network), tiny, amount, "small", 1)
    assert set(found) == COLUMNS
    ids = plays.tokens(VOCABULARY, tiny.held_out)
    test = experiment.spread(plays.windows(ids, 8), 5)
    plain = PromptedDecoder(network.decoder, None)
    assert found["none"] == experiment.bits(plain, VOCABULARY, test)
    size, rates = experiment.AMOUNTS[amount], experiment.RATES[amount, "small"]
    rows = experiment.drawn(VOCABULARY, tiny.tuning, size, 1)
    for method in ("prompt", "full"):
        # Each method from a decoder of its own: the one before left no trace.
        own = copy.deepcopy(network.decoder)
        model, _ = experiment.tuned(own, rows, method, rates[method], size, 1)
        assert found[method] == experiment.bits(model, VOCABULARY, test)
    gains = [found["none"] - found[method] for method in ("prompt", "full")]
    assert found["closed"] == pytest.approx(gains[0] / gains[1], rel=1e-12)
    assert found["trainable_prompt"] == 24
    assert found["trainable_full"] == small_decoders.parameters(TINY, 100)


def test_a_run_has_all_cases_and_a_short_run_is_one_of_them():
    found = experiment.run(2)
    assert set(found) == {"short", "few", "many"}
    assert list(found["few"]) == ["tiny", "small", "medium"]
    assert list(found["many"]) == ["small", "medium"]
    assert all(set(case) == COLUMNS for part in ("few", "many") for case in found[part].values())
    short = experiment.run_short(2)
    assert found["short"] == short
    assert short == {key: found["few"]["tiny"][key] for key in short}
    assert set(short) == {"none", "prompt", "full", "closed"}
    # Another amount, another decoder, and another seed are other numbers.
    assert found["many"]["small"]["full"] != found["few"]["small"]["full"]
    assert len({case["none"] for case in found["few"].values()}) == 3
    assert experiment.run_short(3)["prompt"] != short["prompt"]


def test_the_reference_is_the_dear_decoder_with_two_seeds():
    found = experiment.reference()
    assert all(set(case) == COLUMNS for case in found)
    books = plays.milton()
    for seed, case in enumerate(found):
        again = experiment.compared(read("smollm2"), books, "few", "smollm2", seed)
        assert case["prompt"] == again["prompt"]
    assert found[0]["prompt"] != found[1]["prompt"]


def test_a_trial_measures_rates_on_the_book_to_choose_by(tiny, monkeypatch):
    monkeypatch.setattr(experiment, "TRIED", {"small": {"full": (1e-3, 1e-2)}})
    found = experiment.trial("few", "small", "full", 7)
    test = experiment.spread(plays.windows(plays.tokens(VOCABULARY, tiny.choosing), 8), 5)
    rows = experiment.drawn(VOCABULARY, tiny.tuning, SMALLEST, 7)
    for rate in (1e-3, 1e-2):
        model, _ = experiment.tuned(read().decoder, rows, "full", rate, SMALLEST, 7)
        assert found.pop(rate) == experiment.bits(model, VOCABULARY, test)
    assert not found
    assert experiment.trial.__defaults__ == (1000,)


def test_the_record_says_what_it_depends_on(monkeypatch):
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    digests = {experiment.data_digest()}
    for module, name in (
        (data, "SHAKESPEARE_SHA256"),
        (plays, "MILTON_SHA256"),
        (decoder, "SHA256"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, "0" * 64)
            digests.add(experiment.data_digest())
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_every_rate_was_tried_and_every_case_has_one():
    assert set(experiment.RATES) == {*experiment.CASES, experiment.DEAR}
    assert all(set(rates) == set(experiment.METHODS) for rates in experiment.RATES.values())
    for amount, name in experiment.RATES:
        rates, tried = experiment.RATES[amount, name], experiment.TRIED[name]
        assert all(rates[method] in tried[method] for method in rates)


def test_readers_have_the_decoders_of_their_names(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(small_decoders, "pretrained", lambda *arguments: arguments)
    monkeypatch.setattr(plays, "shakespeare", lambda: VERSE)
    monkeypatch.setattr(plays, "byte_pairs", lambda text: (text, "pairs"))
    for name, size in (
        ("tiny", Size("tiny", 32, 2, 2)),
        ("small", small_decoders.SMALL),
        ("medium", small_decoders.MEDIUM),
    ):
        found, tokenizer = experiment.reader(name)
        assert (found[0], tokenizer) == (size, (VERSE, "pairs"))
        rest = pretraining.Settings(steps=100, batch=8, length=64)
        assert found[1] == small_decoders.TRAININGS.get(size, rest)
    monkeypatch.setattr(decoder, "pretrained_decoder", lambda: "SmolLM2")
    monkeypatch.setattr(decoder, "tokenizer", lambda: SimpleNamespace(backend_tokenizer="inner"))
    assert experiment.reader("smollm2") == ("SmolLM2", "inner")


@pytest.mark.slow
def test_the_tokenizer_of_smollm2_counts_characters():
    tokenizer = decoder.tokenizer().backend_tokenizer
    ids = plays.tokens(tokenizer, VERSE)
    assert tokenizer.decode(ids.tolist()) == VERSE
    assert plays.characters(tokenizer, ids) == len(VERSE)
