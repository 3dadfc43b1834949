"""Five ways from a record to a sentence, on a tiny decoder: what each trains, and what is measured."""

import copy
import functools
import math

import pytest
import sacrebleu
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradbook.experiments import table_to_text as experiment
from gradbook.language import airports, completion, decoder, tuning
from gradbook.language.airports import Airport
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.peft.injection import count
from gradbook.peft.lora import LoRALinear
from gradbook.peft.prefix import PrefixSelfAttention
from gradbook.peft.prompts import prompt_parameters

LETTERS = "\n" + "".join(map(chr, range(32, 127)))
WIDTH, INNER, LAYERS, HEADS, SHARED = 12, 10, 2, 3, 1
ZURICH = Airport("LSZH", "Zurich Airport", "Zurich", "CH", 1416, 47.46)
CUZCO = Airport("SPZO", "Velasco Astete Airport", "Cuzco", "PE", 10860, -13.54)
COLUMNS = {"trainable", "nats", "bleu", "chrf", "rules", "all", "kept"}
TRAINED = COLUMNS | {"late_loss", "seconds", "frozen"}
# Of SmolLM2: words, layers, widths of the model and of its feed-forward branches.
REAL = (49_152, 30, 576, 1_536)


def config(words, layers, width, inner, heads, shared):
    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
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
def built():
    generator = torch.Generator().manual_seed(7)
    sizes = len(LETTERS) + 1, LAYERS, WIDTH, INNER, HEADS, SHARED
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config(*sizes)).double().eval()
    with torch.no_grad():
        for name, part in model.named_parameters():
            part.normal_(float("norm" in name), 0.3, generator=generator)
    return model


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Puts a tiny decoder in the place of the pretrained one, and shortens what it writes."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(decoder, "pretrained_decoder", lambda: copy.deepcopy(built()))
    monkeypatch.setattr(decoder, "tokenizer", letters)
    monkeypatch.setattr(experiment, "LONGEST", 220)
    monkeypatch.setattr(experiment, "STEPS", 6)
    monkeypatch.setattr(experiment, "SHORT", experiment.Scale(4, 2))


def prepared(name):
    return experiment.WAYS[name].prepare(
        decoder.pretrained_decoder(), torch.Generator().manual_seed(20_003)
    )


def split():
    return airports.split(airports.airports())


def counts(words, layers, width, inner, keys):
    """What every way trains, as a formula."""
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    return {
        "prompt": prompt_parameters(20, width),
        "prefix": 2 * layers * 10 * keys,
        "lora": layers * 2 * (width + width + width + keys),
        "full": words * width + layers * layer + width,
    }


# The ways


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_way_trains_as_many_numbers_as_its_formula_says(name):
    wanted = counts(len(LETTERS) + 1, LAYERS, WIDTH, INNER, WIDTH // HEADS * SHARED)
    assert count(prepared(name))[0] == wanted[name]


@pytest.mark.parametrize("name", ["prefix", "lora", "full"])
def test_real_counts(name):
    with torch.device("meta"):
        model = LlamaForCausalLM(config(*REAL, 9, 3))
    found = experiment.WAYS[name].prepare(model, torch.Generator().manual_seed(0))
    assert count(found)[0] == counts(*REAL, 192)[name]
    assert counts(*REAL, 192) == {
        "prompt": 11_520,
        "prefix": 115_200,
        "lora": 115_200,
        "full": 134_515_008,
    }


def test_new_things_stand_where_they_should():
    def places(name, kind):
        modules = prepared(name).decoder.model.layers[1].named_modules()
        return {place for place, module in modules if isinstance(module, kind)}

    assert places("prefix", PrefixSelfAttention) == {"self_attn"}
    assert places("lora", LoRALinear) == {"self_attn.q_proj", "self_attn.v_proj"}
    layer = prepared("lora").decoder.model.layers[0].self_attn.q_proj
    assert (layer.A.shape[0], layer.scaling) == (2, 2.0)


def test_a_prompt_starts_from_tokens_without_repeats():
    vectors = prepared("prompt").prompt.vectors
    table = built().get_input_embeddings().weight
    equal = (vectors[:, None] == table).all(-1)
    assert equal.sum(1).tolist() == [1] * 20
    assert equal.sum(0).max() == 1


# The records


def test_all_seeds_are_tested_on_the_same_records_and_learn_from_others():
    words, rows, test = experiment.drawn(0, experiment.TABLE)
    _, others, same = experiment.drawn(1, experiment.TABLE)
    parts = split()
    assert words is letters()
    assert same == test == parts.test[:60]
    assert len(set(rows)) == 200
    assert set(rows) <= set(parts.pool)
    assert set(rows) != set(others)
    assert rows == airports.drawn(parts.pool, 200, 10_000)
    assert experiment.data_digest() == airports.SHA256


def test_what_is_learned_is_the_sentence_and_its_end():
    words = letters()
    for front in ("", "Look: "):
        found = experiment.pairs(words, [ZURICH, CUZCO], front)
        for i, airport in enumerate((ZURICH, CUZCO)):
            kept = found.mask[i].bool()
            labels = found.labels[i]
            own = airports.sentence(airport) + "<end>"
            assert words.decode(labels[labels != -100]) == own
            assert words.decode(found.ids[i][kept]) == f"{front}{airports.table(airport)}\n{own}"


def test_a_front_may_be_longer_than_a_pair():
    found = experiment.pairs(letters(), [ZURICH], "a" * 300)
    assert found.mask.sum() > 300
    with pytest.raises(ValueError, match="^longest"):
        experiment.pairs(letters(), [ZURICH._replace(name="a" * 220)], "a" * 300)


# One training


@pytest.mark.parametrize("name", experiment.WAYS)
def test_training_moves_what_trains_and_nothing_else(name):
    words, rows, test = experiment.drawn(3, experiment.Scale(8, 2))
    found, texts = experiment.tuned(name, words, rows, test, 3)
    assert set(found) == TRAINED
    assert found["frozen"] == 1.0
    assert found["trainable"] == count(prepared(name))[0]
    assert len(texts) == 2
    start = completion.nats_per_token(prepared(name), experiment.pairs(words, test), 4)
    assert found["nats"] != pytest.approx(start, rel=1e-6)
    assert math.isfinite(found["late_loss"])


@pytest.mark.parametrize("name", ["prompt", "prefix", "lora"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_frozen_number_that_moves_is_seen(name, which, monkeypatch):
    def fit(model, *_):
        with torch.no_grad():
            [p for p in model.parameters() if not p.requires_grad][which].view(-1)[-1] += 1e-3
        return tuning.Course([1.0], 0.0)

    monkeypatch.setattr(completion, "fit", fit)
    words, rows, test = experiment.drawn(0, experiment.Scale(2, 1))
    assert experiment.tuned(name, words, rows, test, 0)[0]["frozen"] == 0.0


def test_a_training_has_its_records_its_rate_and_the_order_of_its_seed(monkeypatch):
    seen = []

    def fit(*arguments):
        seen.append(arguments)
        return tuning.Course([4.0, 1.0, 2.0, 6.0, 7.0], 0.25)

    monkeypatch.setattr(completion, "fit", fit)
    words, rows, test = experiment.drawn(3, experiment.Scale(8, 1))
    for name, way in experiment.WAYS.items():
        found, _ = experiment.tuned(name, words, rows, test, 3)
        model, examples, setting, seed = seen.pop()
        assert setting == tuning.Setting(1, 12 if name == "full" else 4, way.rate)
        assert seed == 30_003
        expected = experiment.pairs(words, rows)
        assert all(torch.equal(a, b) for a, b in zip(examples, expected, strict=True))
        states = prepared(name).state_dict()
        assert all(torch.equal(part, states[key]) for key, part in model.state_dict().items())
        assert (found["late_loss"], found["seconds"]) == (5.0, 0.25)


def test_a_seed_repeats_itself():
    words, rows, test = experiment.drawn(0, experiment.Scale(4, 1))

    def found(seed):
        result, texts = experiment.tuned("prefix", words, rows, test, seed)
        return result["nats"], result["late_loss"], texts

    assert found(1) == found(1)
    assert found(1)[0] != found(2)[0]


# What is measured


@pytest.fixture
def written(monkeypatch):
    """Puts texts of our own in the place of a model's, and keeps what it was given to read."""
    read = []

    def put(*texts):
        def completions(model, words, sources, steps, batch):
            read.extend(sources)
            return list(texts)

        monkeypatch.setattr(completion, "completions", completions)
        return read

    return put


def test_our_own_sentences_have_the_best_scores(written):
    airport_pair = (ZURICH, CUZCO)
    written(*(f" {airports.sentence(airport)}\n" for airport in airport_pair))
    model = PromptedDecoder(built(), None)
    found, texts = experiment.measured(model, letters(), airport_pair)
    assert texts == [airports.sentence(airport) for airport in airport_pair]
    # Sums of logarithms round BLEU in the last digits of float64.
    assert found["bleu"] == pytest.approx(100, abs=1e-9)
    assert (found["chrf"], found["all"], found["kept"]) == (100, 1, 1)
    assert set(found["rules"].values()) == {1}
    examples = experiment.pairs(letters(), airport_pair)
    assert found["nats"] == completion.nats_per_token(model, examples, 4)


def test_other_sentences_have_the_scores_of_sacrebleu_and_the_rules_they_keep(written):
    one, other = airports.sentence(ZURICH), airports.sentence(CUZCO)
    wrong = other.replace("10900", "10860").replace("south", "north")
    written(one, wrong)
    found, _ = experiment.measured(PromptedDecoder(built(), None), letters(), (ZURICH, CUZCO))
    bleu = sacrebleu.BLEU().corpus_score([one, wrong], [[one, other]]).score
    chrf = sacrebleu.CHRF().corpus_score([one, wrong], [[one, other]]).score
    assert (found["bleu"], found["chrf"]) == (bleu, chrf)
    assert found["rules"] == {
        "place": 1,
        "name": 1,
        "side": 0.5,
        "height": 1,
        "elevation": 0.5,
        "frame": 1,
    }
    assert (found["all"], found["kept"]) == (0.5, pytest.approx(5 / 6, rel=1e-15))


def test_a_hard_prompt_shows_rules_and_two_examples_before_each_record(written):
    read = written("one", "other")
    parts = split()
    found, texts = experiment.shown(letters(), parts.pool[:2], (ZURICH, CUZCO))
    assert set(found) == COLUMNS
    assert found["trainable"] == 0
    assert texts == ["one", "other"]
    shown = "".join(
        f"{airports.table(airport)}\n{airports.sentence(airport)}<end>\n\n"
        for airport in parts.pool[:2]
    )
    assert read == [
        f"{experiment.INSTRUCTION}{shown}{airports.table(airport)}\n" for airport in (ZURICH, CUZCO)
    ]
    whole = experiment.pairs(letters(), (ZURICH, CUZCO), experiment.INSTRUCTION + shown)
    nats = completion.nats_per_token(PromptedDecoder(built(), None), whole, 4)
    assert found["nats"] == nats


def test_the_instruction_says_the_numbers_of_the_rules():
    for number in (airports.LOW, airports.HIGH):
        assert f" {number} " in experiment.INSTRUCTION.replace(",", " ,")


def test_signatures_name_what_is_computed():
    found = experiment.signatures()
    assert "tok:13a" in found["bleu"]
    assert "nrefs:1" in found["bleu"]
    assert "nc:6" in found["chrf"]


# A whole seed


def test_a_run_has_every_small_way_and_what_they_wrote():
    found = experiment.run(2, experiment.Scale(4, 5))
    assert tuple(found["ways"]) == tuple(found["texts"]) == experiment.SMALL
    assert all(set(way) == TRAINED for way in found["ways"].values())
    assert all(len(lines) == 4 for lines in found["texts"].values())
    assert found["short"] == experiment.run_short(2)


def test_the_reference_has_the_other_ways():
    found = experiment.reference(experiment.Scale(4, 5))
    assert list(found["ways"]) == list(found["texts"]) == ["hard", "full"]
    assert set(found["ways"]["hard"]) == COLUMNS
    assert set(found["ways"]["full"]) == TRAINED
    assert set(experiment.SMALL) | {"full"} == set(experiment.WAYS)
    assert all(len(lines) == 4 for lines in found["texts"].values())
    assert found["signatures"] == experiment.signatures()


def test_a_hard_prompt_shows_records_of_the_first_seed(monkeypatch):
    pairs = []
    monkeypatch.setattr(experiment, "shown", lambda _, pair, test: pairs.append(pair) or ({}, []))
    monkeypatch.setattr(experiment, "tuned", lambda name, *_: ({}, []))
    experiment.reference()
    assert pairs == [airports.drawn(split().pool, 2, 10_000)]


def test_a_short_run_is_lora_on_few_records():
    words, rows, test = experiment.drawn(1, experiment.Scale(4, 2))
    found, _ = experiment.tuned("lora", words, rows, test, 1)
    assert experiment.run_short(1) == {"late_loss": found["late_loss"], "nats": found["nats"]}
