"""LoRA on a decoder in 4 bits: what rounds, what is paired with the float record, and the merges."""

import copy
import functools
import math
from statistics import NormalDist, fmean

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradbook.experiments import qlora_table_to_text as experiment
from gradbook.experiments import table_to_text
from gradbook.language import airports, completion, decoder, tuning
from gradbook.language.prompted_decoder import PromptedDecoder
from gradbook.peft.double_quantization import double_dequantize, double_quantize
from gradbook.peft.injection import count
from gradbook.peft.lora import LoRALinear
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear
from gradbook.peft.qlora import QLoRALinear

LETTERS = "\n" + "".join(map(chr, range(32, 127)))
# All maps have more than 256 blocks of 64 numbers, so that scales have more than one block, too.
LAYERS, WIDTH, KEYS, INNER, HEADS = 2, 192, 96, 96, 4
PAIR = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(LAYERS) for part in "qv"]
MAPS = [
    f"model.layers.{i}.{part}_proj"
    for i in range(LAYERS)
    for part in (
        "self_attn.q",
        "self_attn.k",
        "self_attn.v",
        "self_attn.o",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    )
]
MEASURES = {"nats", "bleu", "chrf", "rules", "all", "kept"}
TRAINED = {"trainable", "late_loss", "seconds", "frozen"}
MERGED = ["again", "float", "float again"]
# Read once for all tests.
AIRPORTS = functools.cache(airports.airports)
COURSE = tuning.Course([4.0, 1.0, 2.0, 6.0, 7.0], 0.25)


def nf4_levels():
    """Equal steps of probability from 1/2 to the end: eight above 0, seven below."""
    quantile, end = NormalDist().inv_cdf, 0.9677083
    above = [quantile(0.5 + k * (end - 0.5) / 8) for k in range(1, 9)]
    below = [-quantile(0.5 + k * (end - 0.5) / 7) for k in range(7, 0, -1)]
    return torch.tensor([*below, 0.0, *above], dtype=torch.float64) / above[-1]


def by_hand(weight):
    """Compare each weight, over the largest of its 64, with every level; scales become bytes."""
    rows, levels = weight.reshape(-1, 64), nf4_levels()
    scales = rows.abs().amax(1)
    nearest = ((rows / scales[:, None])[..., None] - levels).abs().argmin(-1)
    scales = double_dequantize(double_quantize(scales))
    return (levels[nearest] * scales[:, None]).view_as(weight)


def close(ours, theirs):
    # float64; no weight of these models is so near to the middle of two levels.
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


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
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 1,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS * HEADS // WIDTH,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=len(LETTERS),
    )
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, part in model.named_parameters():
            part.normal_(float("norm" in name), 0.1, generator=generator)
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


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(model, *arguments, **more):
        seen.append((model, arguments, more))
        return COURSE

    monkeypatch.setattr(completion, "fit", fit)
    return seen


def drawn(seed, rows, test=1):
    return table_to_text.drawn(seed, experiment.Scale(rows, test))


def started(fits, seed=3):
    """A model before training, and what is said of it."""
    words, rows, _ = drawn(seed, 8)
    model, found = experiment.tuned(words, rows, seed)
    assert fits.pop()[0] is model
    return model, found


def additions(model, kind=QLoRALinear):
    modules = model.decoder.named_modules()
    return {name: module for name, module in modules if isinstance(module, kind)}


def stirred(fits):
    """A model whose additions are not zero, and the additions, computed anew."""
    (model, _), generator = started(fits), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in additions(model).values():
            module.B.normal_(0, 0.1, generator=generator)
        deltas = {name: 2.0 * (m.B @ m.A) for name, m in additions(model).items()}
    return model, deltas


def float_weights():
    return {name: network().get_submodule(name).weight.detach() for name in MAPS}


def weights(model):
    """By name of a map, whether it is in NF4, and its weights."""
    found = {}
    for name in MAPS:
        layer = model.decoder.get_submodule(name)
        if isinstance(layer, QLoRALinear):
            layer = layer.layer
        kept = isinstance(layer, NF4Linear)
        if kept:
            assert (layer.block_size, layer.scales_kind) == (64, DoubleScales)
        found[name] = kept, (layer.decoded() if kept else layer.weight.detach())
    return found


def require_rest(model):
    """Embeddings and norms are those of the decoder, and the head is tied to the embedding."""
    parts = network().state_dict()
    rest = {name: value for name, value in parts.items() if name.rsplit(".", 1)[0] not in MAPS}
    # The embedding under two names, two norms of each layer, and the last one.
    assert len(rest) == 2 + 2 * LAYERS + 1
    # Not its state, which nobody saves while a layer is merged.
    parts = dict(model.decoder.named_parameters(remove_duplicate=False))
    for name, value in rest.items():
        assert torch.equal(parts[name], value)
    assert model.decoder.lm_head.weight is model.decoder.model.embed_tokens.weight


# The base


def test_what_is_shared_with_the_other_record():
    assert (experiment.RANK, experiment.BLOCK, experiment.MANY) == (2, 64, table_to_text.MANY)
    assert experiment.SEEDS == table_to_text.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.run.__defaults__ == table_to_text.run.__defaults__ == ((200, 60),)
    assert experiment.reference.__defaults__ == ((200, 60),)
    assert experiment.SHORT == table_to_text.SHORT == (8, 4)
    assert experiment.data_digest() == airports.SHA256


def test_all_seven_maps_of_a_layer_are_rounded_and_nothing_else():
    model = experiment.rounded()
    assert list(additions(model, NF4Linear)) == MAPS
    for name, (kept, ours) in weights(model).items():
        weight = float_weights()[name]
        close(ours, by_hand(weight))
        assert (ours - weight).abs().max() > 1e-3
        layer = model.decoder.get_submodule(name)
        assert kept
        assert type(layer.scales) is DoubleScales
        assert layer.scales.indices.numel() == weight.numel() / 64 > 256
        assert layer.packed.numel() == weight.numel() / 2
    require_rest(model)
    assert model.prompt is None
    assert count(model)[0] == 0


# LoRA beside it


def test_lora_stands_beside_queries_and_values_alone(fits):
    model, found = started(fits)
    assert list(additions(model)) == list(additions(model, LoRALinear)) == PAIR
    assert list(additions(model, NF4Linear)) == [
        f"{name}.layer" if name in PAIR else name for name in MAPS
    ]
    for module in additions(model).values():
        assert (len(module.A), module.scaling) == (2, 2.0)
        assert not module.B.any()
    for name, (kept, ours) in weights(model).items():
        assert kept
        close(ours, by_hand(float_weights()[name]))
    require_rest(model)
    trained = {part for part, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"decoder.{name}.{part}" for name in PAIR for part in "AB"}
    # Of rank 2, from a width to the queries and to the values.
    assert found["trainable"] == count(model)[0] == LAYERS * 2 * (3 * WIDTH + KEYS)


def test_draws_are_those_of_the_float_base(fits, monkeypatch):
    monkeypatch.setattr(table_to_text, "measured", lambda *_: ({}, []))
    ours = [module.A for module in additions(started(fits)[0]).values()]
    words, rows, test = drawn(3, 8)
    theirs, _ = table_to_text.tuned("lora", words, rows, test, 3)
    pairs = zip(ours, additions(fits.pop()[0], LoRALinear).values(), strict=True)
    assert all(torch.equal(a, b.A) for a, b in pairs)
    other = [module.A for module in additions(started(fits, 4)[0]).values()]
    assert not any(torch.equal(a, b) for a, b in zip(ours, other, strict=True))
    assert theirs["trainable"] == started(fits)[1]["trainable"]


def test_a_training_has_the_records_the_rate_and_the_order_of_the_float_base(fits, monkeypatch):
    monkeypatch.setattr(table_to_text, "measured", lambda *_: ({}, []))
    words, rows, test = drawn(3, 8)
    table_to_text.tuned("lora", words, rows, test, 3)
    _, (pairs, *how), _ = fits.pop()
    assert how == [tuning.Setting(1, 4, 1e-2), 30_003]
    _, found = experiment.tuned(words, rows, 3)
    ((_, (own, *rest), more),) = fits
    assert (rest, more) == (how, {})
    assert all(torch.equal(a, b) for a, b in zip(own, pairs, strict=True))
    assert set(found) == TRAINED
    # The last half of the steps, and what the course says of a step.
    assert (found["late_loss"], found["seconds"], found["frozen"]) == (5.0, 0.25, 1.0)


def test_training_moves_what_trains_and_nothing_else(monkeypatch):
    fit, seen = completion.fit, []

    def watched(model, *arguments):
        seen.append({name: part.clone() for name, part in model.state_dict().items()})
        return fit(model, *arguments)

    monkeypatch.setattr(completion, "fit", watched)
    words, rows, _ = drawn(3, 12)
    model, found = experiment.tuned(words, rows, 3)
    ((before, now),) = zip(seen, [model.state_dict()], strict=True)
    assert set(before) == set(now)
    moved = {name for name in before if not torch.equal(before[name], now[name])}
    assert moved == {f"decoder.{name}.{part}" for name in PAIR for part in "AB"}
    assert found["frozen"] == 1.0
    torch.randn(3)
    again, same = experiment.tuned(words, rows, 3)
    assert same["late_loss"] == found["late_loss"]
    assert all(torch.equal(part, now[name]) for name, part in again.state_dict().items())


@pytest.mark.parametrize("name", [PAIR[0], MAPS[-1], "model.norm"])
def test_a_frozen_tensor_that_moves_is_seen(name, monkeypatch):
    def fit(model, *_):
        layer = model.decoder.get_submodule(name)
        if name in PAIR:
            layer = layer.layer
        with torch.no_grad():
            # One of two weights in a byte.
            (layer.packed if name in MAPS else layer.weight)[-1] += 1
        return COURSE

    monkeypatch.setattr(completion, "fit", fit)
    words, rows, _ = drawn(0, 2)
    assert experiment.tuned(words, rows, 0)[1]["frozen"] == 0.0


# Merges


def test_three_merges_by_hand(fits):
    model, deltas = stirred(fits)
    decoded = {name: ours for name, (_, ours) in weights(model).items()}
    merged, said = experiment.merges(model)
    assert list(merged) == MERGED
    assert merged["again"] is model
    assert len({id(one.decoder) for one in merged.values()}) == 3
    assert all(module.merged for module in additions(model).values())
    for name in ("float", "float again"):
        assert not additions(merged[name])
    for one in merged.values():
        require_rest(one)
        assert one.prompt is None
    found, sizes, shares = {name: weights(one) for name, one in merged.items()}, [], []
    for name, weight in float_weights().items():
        delta = deltas.get(name, torch.zeros_like(weight))
        change = decoded[name] + delta
        # Maps without an addition are not quantized a second time.
        wanted = {
            "again": (True, by_hand(change) if name in PAIR else decoded[name]),
            "float": (False, weight + delta),
            "float again": (True, by_hand(weight + delta)),
        }
        for way, (kept, theirs) in wanted.items():
            assert found[way][name][0] == kept
            close(found[way][name][1], theirs)
        if name in PAIR:
            assert (found["again"][name][1] - found["float again"][name][1]).abs().max() > 1e-3
            sizes.append((delta.square().sum() / decoded[name].square().sum()).sqrt().item())
            change = wanted["again"][1] - decoded[name]
            shares.append(((change * delta).sum() / delta.square().sum()).item())
    assert set(said) == {"size", "kept"}
    assert len(sizes) == 4
    assert said["size"] == pytest.approx(fmean(sizes), rel=1e-9)
    assert said["kept"] == pytest.approx(fmean(shares), rel=1e-9)


def test_merges_give_the_networks_of_their_weights(fits):
    model, _ = stirred(fits)
    words, rows, _ = drawn(0, 3)
    batch = table_to_text.pairs(words, rows)
    merged, _ = experiment.merges(model)
    losses = {}
    for name, one in merged.items():
        plain = copy.deepcopy(network())
        with torch.no_grad():
            for place, (_, weight) in weights(one).items():
                plain.get_submodule(place).weight.copy_(weight)
        losses[name] = one.loss(*batch).item()
        # float64 through two layers
        assert losses[name] == pytest.approx(
            PromptedDecoder(plain, None).loss(*batch).item(), 1e-12
        )
    assert len(set(losses.values())) == 3


# What rounding does, and a whole seed


def test_the_reference_measures_the_float_decoder_and_the_rounded_one(monkeypatch):
    seen, draw = [], table_to_text.drawn

    def noted(*arguments):
        seen.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(table_to_text, "drawn", noted)
    scale = experiment.Scale(2, 5)
    found = experiment.reference(scale)
    assert seen == [(0, scale)]
    words, _, test = draw(0, scale)
    pairs = table_to_text.pairs(words, test)
    assert len(pairs[0]) == 5
    plain = copy.deepcopy(network())
    nats = {"float": completion.nats_per_token(PromptedDecoder(plain, None), pairs, 30)}
    with torch.no_grad():
        for name, weight in float_weights().items():
            plain.get_submodule(name).weight.copy_(by_hand(weight))
    nats["nf4"] = completion.nats_per_token(PromptedDecoder(plain, None), pairs, 30)
    assert set(found) == {"nats"}
    assert list(found["nats"]) == ["float", "nf4"]
    assert found["nats"]["float"] == nats["float"]
    # float64 through two layers
    assert found["nats"]["nf4"] == pytest.approx(nats["nf4"], rel=1e-12)
    assert abs(nats["nf4"] - nats["float"]) > 1e-3


def test_a_short_run_takes_two_steps_on_eight_records(monkeypatch):
    fit, courses = completion.fit, []

    def watched(*arguments):
        courses.append(fit(*arguments))
        return courses[-1]

    monkeypatch.setattr(completion, "fit", watched)
    found = experiment.run_short(3)
    (course,) = courses
    assert len(course.losses) == 2
    words, rows, test = drawn(3, 8, 4)
    model, said = experiment.tuned(words, rows, 3)
    nats = completion.nats_per_token(model, table_to_text.pairs(words, test), 30)
    assert found == {"late_loss": course.losses[1], "nats": nats}
    assert said["late_loss"] == course.losses[1]


def test_a_run_has_all_merges_and_what_they_wrote():
    found = experiment.run(2, experiment.Scale(4, 3))
    assert set(found) == {"short", "ways", "texts", "size", "kept"}
    assert list(found["ways"]) == list(found["texts"]) == ["apart", *MERGED]
    assert set(found["ways"]["apart"]) == TRAINED | MEASURES
    assert all(set(found["ways"][name]) == MEASURES for name in MERGED)
    assert found["ways"]["apart"]["frozen"] == 1.0
    assert len({way["nats"] for way in found["ways"].values()}) == 4
    assert all(len(lines) == 3 for lines in found["texts"].values())
    assert found["size"] > 0
    assert math.isfinite(found["kept"])
    # All again, one by one.
    words, rows, test = drawn(2, 4, 3)
    model, trained = experiment.tuned(words, rows, 2)
    measured, lines = table_to_text.measured(model, words, test)
    wanted = {"apart": trained | measured}, {"apart": lines}
    merged, said = experiment.merges(model)
    for name, one in merged.items():
        wanted[0][name], wanted[1][name] = table_to_text.measured(one, words, test)
    for way in (found["ways"]["apart"], wanted[0]["apart"]):
        del way["seconds"]
    assert (found["ways"], found["texts"]) == wanted
    assert said == {"size": found["size"], "kept": found["kept"]}


def test_a_run_has_the_records_of_the_other_one(monkeypatch):
    calls, seen = [], []

    def tuned(*arguments):
        calls.append(arguments)
        return "model", {"late_loss": len(calls)}

    def draw(*arguments):
        seen.append(arguments)
        return "words", f"rows of {arguments}", f"test of {arguments}"

    def measured(model, words, test):
        assert (words, test) == ("words", f"test of {(7, scale)}")
        return {"of": model}, [f"{model} {i}" for i in range(9)]

    scale = experiment.Scale(8, 5)
    monkeypatch.setattr(experiment, "tuned", tuned)
    monkeypatch.setattr(
        experiment, "merges", lambda model: ({f"{model} again": "merged"}, {"size": 0.5})
    )
    monkeypatch.setattr(table_to_text, "drawn", draw)
    monkeypatch.setattr(table_to_text, "measured", measured)
    monkeypatch.setattr(table_to_text, "pairs", lambda *arguments: arguments)
    monkeypatch.setattr(completion, "nats_per_token", lambda *arguments: arguments)
    found = experiment.run(7, scale)
    assert seen == [(7, scale), (7, experiment.SHORT)]
    assert calls == [("words", f"rows of {x}", 7) for x in seen]
    assert found["ways"] == {
        "apart": {"late_loss": 1, "of": "model"},
        "model again": {"of": "merged"},
    }
    assert found["texts"] == {
        "apart": [f"model {i}" for i in range(4)],
        "model again": [f"merged {i}" for i in range(4)],
    }
    assert found["size"] == 0.5
    short = ("model", ("words", f"test of {seen[1]}"), 30)
    assert found["short"] == {"late_loss": 2, "nats": short}
