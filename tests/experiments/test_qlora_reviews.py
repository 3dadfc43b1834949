"""LoRA on a rounded encoder: what rounds, what is paired with the float record, and the merges."""

import copy
import functools
import math
from statistics import NormalDist, fmean

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from gradbook.experiments import lora_places, lora_reviews, review_tuning
from gradbook.experiments import qlora_reviews as experiment
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.peft.double_quantization import double_dequantize, double_quantize
from gradbook.peft.injection import inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.nf4_linear import DoubleScales, NF4Linear, Scales
from gradbook.peft.qlora import QLoRALinear

# A map of the attention is one block of 4096 numbers, one of the feed-forward branch two.
WORDS, WIDTH, INNER, LAYERS = 97, 64, 128, 2
PLACES = [
    f"encoder.layer.{i}.{place}"
    for i in range(LAYERS)
    for place in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
BASES = ["nf4", "nf4 4096", "int4", "nf3", "nf2"]
MEASURES = {"accuracy", "log_loss", "few"}
COURSE = tuning.Course([4.0, 1.0, 2.0, 6.0, 7.0], 0.25)


def quantiles(positive, negative, end):
    """Levels whose probabilities go in equal steps from 1/2 to an end, above 0 and below."""
    quantile = NormalDist().inv_cdf
    above = [quantile(0.5 + k * (end - 0.5) / positive) for k in range(1, positive + 1)]
    below = [-quantile(0.5 + k * (end - 0.5) / negative) for k in range(negative, 0, -1)]
    return torch.tensor([*below, 0.0, *above], dtype=torch.float64) / above[-1]


# Half-cells of an eighth to a 32nd of the half above 0, and as many and one more below.
LEVELS = {
    "nf4": quantiles(8, 7, 0.9677083),
    "nf4 4096": quantiles(8, 7, 0.9677083),
    "int4": torch.tensor([k / 7 for k in range(-7, 8)], dtype=torch.float64),
    "nf3": quantiles(4, 3, 1 - (1 / 16 + 1 / 14) / 2),
    "nf2": quantiles(2, 1, 1 - (1 / 8 + 1 / 6) / 2),
}


def by_hand(name, weight):
    """Compare each weight, over the largest of its block, with every level."""
    rows = weight.reshape(-1, 4096 if name == "nf4 4096" else 64)
    scales = rows.abs().amax(1)
    nearest = ((rows / scales[:, None])[..., None] - LEVELS[name]).abs().argmin(-1)
    if name == "nf4":
        scales = double_dequantize(double_quantize(scales))
    return (LEVELS[name][nearest] * scales[:, None]).view_as(weight)


def close(ours, theirs):
    # float64; no weight of these models is so near to the middle of two levels.
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@functools.cache
def built():
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config, add_pooling_layer=False).double()
    with torch.no_grad():
        for name, part in model.named_parameters():
            part.normal_(float("LayerNorm.weight" in name), 0.2, generator=generator)
    return model


@pytest.fixture(autouse=True)
def tiny(monkeypatch, sentences):
    """Puts a tiny encoder and random rows in the place of the real ones, on the CPU."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(encoder, "pretrained_encoder", lambda: copy.deepcopy(built()))

    def few_words(*arguments):
        (ids, mask), labels = sentences(*arguments)
        return splits.Rows(encoder.Tokens(ids % WORDS, mask), labels)

    split = splits.Split(few_words(200, 1), few_words(30, 2), few_words(70, 3))
    monkeypatch.setattr(splits, "movies", lambda: split)
    return split


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(model, *arguments, **more):
        seen.append((model, arguments, more))
        return COURSE

    monkeypatch.setattr(tuning, "fit", fit)
    return seen


def started(name, seed=3):
    """A classifier as a base leaves it before training."""
    return prepared(experiment.low_rank(experiment.BASES[name]), seed)


def prepared(way, seed=3):
    rows = splits.movies().choosing.at(torch.arange(1))
    way = way._replace(train=lambda *_: COURSE)
    return lora_reviews.tuned(way, rows, rows, seed, 1e-3, 1)[0]


def additions(model):
    modules = model.encoder.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoRALinear)}


def stirred(name="nf4"):
    """A classifier whose additions are not zero, and the additions, computed anew."""
    model, generator = started(name), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in additions(model).values():
            module.B.normal_(0, 0.05, generator=generator)
        deltas = {name: 2.0 * (m.B @ m.A) for name, m in additions(model).items()}
    return model, deltas


def float_weights():
    return {name: built().get_submodule(name).weight.detach() for name in PLACES}


def same_rows(ours, theirs):
    assert torch.equal(ours.tokens.ids, theirs.tokens.ids)
    assert torch.equal(ours.tokens.mask, theirs.tokens.mask)
    assert torch.equal(ours.labels, theirs.labels)


# The bases


def test_the_bases_and_what_they_share_with_the_other_records():
    assert list(experiment.BASES) == BASES
    assert (experiment.RANK, experiment.BLOCK, experiment.LARGE) == (4, 64, 4096)
    assert experiment.RATE == lora_places.RATES["all 4"] == 3e-3
    assert experiment.SEEDS == lora_places.SEEDS == review_tuning.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.run.__defaults__ == lora_places.run.__defaults__ == ((1_000, 2),)
    assert experiment.SHORT == lora_places.SHORT == (160, 1)
    assert experiment.data_digest() == lora_places.data_digest() == reviews.SHA256["movie"]


@pytest.mark.parametrize("name", BASES)
def test_a_base_rounds_every_weight_to_the_nearest_level_of_its_block(name):
    for place, weight in float_weights().items():
        layer = copy.deepcopy(built().get_submodule(place))
        bias = layer.bias.detach().clone()
        made = experiment.BASES[name](layer)
        assert torch.equal(made.bias, bias)
        found = made.decoded() if name.startswith("nf4") else made.weight
        close(found.detach(), by_hand(name, weight))
        assert (found - weight).abs().max() > 1e-3


@pytest.mark.parametrize("name", BASES)
def test_float32_is_rounded_in_float32(name):
    layer = copy.deepcopy(built().get_submodule(PLACES[4])).float()
    weight = layer.weight.detach().double()
    made = experiment.BASES[name](layer)
    found = made.decoded() if name.startswith("nf4") else made.weight.detach()
    assert found.dtype == torch.float32
    # Rounding of float32, of weights below 1; levels are much further apart.
    torch.testing.assert_close(found.double(), by_hand(name, weight), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "kind"), [("nf4", 64, DoubleScales), ("nf4 4096", 4096, Scales)]
)
def test_what_is_kept_of_a_map_in_nf4(name, size, kind):
    for place, weight in float_weights().items():
        made = experiment.BASES[name](copy.deepcopy(built().get_submodule(place)))
        assert type(made) is NF4Linear
        assert (made.block_size, made.scales_kind, type(made.scales)) == (size, kind, kind)
        assert made.packed.dtype == torch.uint8
        assert made.packed.numel() == weight.numel() / 2
        scales = made.scales()
        assert len(scales) == weight.numel() / size
        exact = weight.view(-1, size).abs().amax(1)
        assert torch.equal(scales, exact) == (kind is Scales)
    assert {w.numel() for w in float_weights().values()} == {4096, 8192}


@pytest.mark.parametrize(("name", "count"), [("int4", 15), ("nf3", 8), ("nf2", 4)])
def test_other_codes_write_into_the_layer_that_is_there(name, count):
    layer = copy.deepcopy(built().get_submodule(PLACES[5]))
    bias = layer.bias.detach().clone()
    assert experiment.BASES[name](layer) is layer
    assert type(layer) is nn.Linear
    assert torch.equal(layer.bias, bias)
    rows = layer.weight.detach().view(-1, 64)
    levels = (rows / rows.abs().amax(1, keepdim=True)).flatten().sort().values
    # Equal up to rounding; the least gap between two levels is a thousand million times that.
    distinct = levels[torch.cat([torch.ones(1).bool(), levels.diff() > 1e-9])]
    assert len(distinct) == count == len(LEVELS[name])
    close(distinct, LEVELS[name])
    # Only an absmax is a level, so the scales of all 128 blocks stay.
    close(rows.abs().amax(1), float_weights()[PLACES[5]].view(-1, 64).abs().amax(1))


@pytest.mark.parametrize(("positive", "negative", "name"), [(4, 3, "nf3"), (2, 1, "nf2")])
def test_levels_in_closed_form(positive, negative, name):
    found = experiment.quantiles(positive, negative)
    assert found.dtype == torch.float64
    close(found, LEVELS[name])
    assert (found[0], found[negative], found[-1]) == (-1, 0, 1)


# LoRA beside them


@pytest.mark.parametrize("name", BASES)
def test_lora_stands_at_all_maps_of_a_layer_and_nowhere_else(name):
    model = started(name)
    found, kept = additions(model), name.startswith("nf4")
    assert list(found) == PLACES
    for place, module in found.items():
        assert type(module) is (QLoRALinear if kept else LoRALinear)
        assert type(module.layer) is (NF4Linear if kept else nn.Linear)
        assert (len(module.A), module.scaling) == (4, 2.0)
        assert not module.B.any()
        close(module.weights().detach(), by_hand(name, float_weights()[place]))
    rest = {
        part: value
        for part, value in built().state_dict().items()
        if part.rsplit(".", 1)[0] not in PLACES
    }
    # Embeddings, and two norms of each layer.
    assert len(rest) == 3 + 2 + LAYERS * 4
    state = model.encoder.state_dict()
    for part, value in rest.items():
        assert torch.equal(state[part], value)
    trained = {part for part, p in model.named_parameters() if p.requires_grad}
    ends = {f"encoder.{place}.{part}" for place in PLACES for part in "AB"}
    assert trained == ends | {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", BASES)
def test_draws_are_those_of_the_float_base(name):
    def starts(model):
        drawn = [module.A for module in additions(model).values()]
        return [model.head.weight, model.head.bias, *drawn]

    ours = starts(started(name))
    theirs = starts(prepared(lora_reviews.WAYS["all 4"]))
    other = starts(started(name, 4))
    assert len(ours) == len(theirs) == 2 + len(PLACES)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # All but the bias of the head, which is zero, depend on the seed.
    assert sum(torch.equal(a, b) for a, b in zip(ours, other, strict=True)) == 1


def test_trainings_have_the_rows_the_rate_and_the_order_of_the_other_records(fits, tiny):
    scale = experiment.Scale(48, 3)
    experiment.run(4, scale)
    ours = [arguments for _, arguments, more in fits if more == {}]
    assert len(ours) == len(fits) == 11
    fits.clear()
    lora_places.run(4, scale)
    theirs = fits[list(lora_places.RATES).index("all 4")][1]
    rows = splits.drawn(tiny.pool, 48, 10_004)
    review_tuning.tuned("head", rows, tiny.test, 4, review_tuning.RATES["head"], 3)
    heads = fits[-1][1]
    assert theirs[2:] == (tuning.Setting(3, 16, 3e-3), 30_004)
    assert heads[2:] == (tuning.Setting(3, 16, 1e-2), 30_004)
    for i, (tokens, labels, *how) in enumerate(ours[:-1]):
        wanted = heads if i % 2 == 0 else theirs
        assert how == list(wanted[2:])
        same_rows(splits.Rows(tokens, labels), splits.Rows(*theirs[:2]))
        same_rows(splits.Rows(tokens, labels), rows)


# A head alone


@pytest.mark.parametrize("name", BASES)
def test_a_head_alone_is_all_that_moves(name, tiny, monkeypatch):
    seen, fit = [], tuning.fit

    def watched(model, *arguments, **more):
        before = {part: value.clone() for part, value in model.state_dict().items()}
        seen.append((model, before, arguments, more))
        return fit(model, *arguments, **more)

    monkeypatch.setattr(tuning, "fit", watched)
    found = experiment.head_alone(experiment.BASES[name], tiny.choosing, tiny.test, 3, 2)
    ((model, before, (tokens, labels, *how), more),) = seen
    same_rows(splits.Rows(tokens, labels), tiny.choosing)
    assert (how, more) == ([tuning.Setting(2, 16, 1e-2), 30_003], {})
    now = model.state_dict()
    moved = {part for part in before if not torch.equal(before[part], now[part])}
    trained = {part for part, p in model.named_parameters() if p.requires_grad}
    assert moved == trained == {"head.weight", "head.bias"}
    assert found == lora_reviews.measured(model, tiny.test)
    # The head starts where LoRA's does, and behind the same base.
    other = started(name)
    assert torch.equal(before["head.weight"], other.head.weight)
    for place, module in additions(other).items():
        layer = model.encoder.get_submodule(place)
        kept = layer.decoded() if isinstance(layer, NF4Linear) else layer.weight
        assert torch.equal(kept, module.weights())
    assert not additions(model)


# Whether a base is as it was


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_is_another_is_seen(name):
    base = experiment.BASES[name]
    model, _ = stirred(name)
    # What is learnt is not looked at.
    assert experiment.untouched(model, base)
    for place in (PLACES[0], PLACES[-1]):
        other = copy.deepcopy(model)
        layer = other.encoder.get_submodule(place).layer
        with torch.no_grad():
            if name.startswith("nf4"):
                layer.packed[-1] ^= 1
            else:
                layer.weight[-1, -1] += 1e-9
        assert not experiment.untouched(other, base)
    for another in set(BASES) - {name}:
        assert not experiment.untouched(model, experiment.BASES[another])


def test_looking_at_a_base_draws_nothing_of_torchs_own():
    model = started("nf3")
    before = torch.get_rng_state()
    assert experiment.untouched(model, experiment.BASES["nf3"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["nf4 4096", "nf2"])
def test_a_run_says_which_base_moved(name, monkeypatch):
    seen, kept = [], name.startswith("nf4")

    def fit(model, *_):
        found = list(additions(model).values())
        seen.append(found)
        # Of every base the head comes first, then LoRA.
        if len(seen) == 2 * BASES.index(name) + 2:
            layer = found[3].layer
            with torch.no_grad():
                (layer.packed if kept else layer.weight).view(-1)[0] += 1
        return COURSE

    monkeypatch.setattr(tuning, "fit", fit)
    ways = experiment.run(2, experiment.Scale(16, 1))["ways"]
    assert {key: way["base"] for key, way in ways.items()} == {
        key: float(key != name) for key in BASES
    }
    # Bytes are buffers, which the other measure does not look at.
    assert ways[name]["frozen"] == float(kept)


# Merges


def test_three_merges_by_hand(monkeypatch, tiny):
    model, deltas = stirred()
    head, seen = model.head.weight.detach().clone(), []
    decoded = {name: module.weights() for name, module in additions(model).items()}

    def measured(model, test):
        assert test is tiny.test
        assert torch.equal(model.head.weight, head)
        found = {}
        for place in PLACES:
            layer = model.encoder.get_submodule(place)
            if isinstance(layer, QLoRALinear):
                assert layer.merged
                layer = layer.layer
            kept = isinstance(layer, NF4Linear)
            if kept:
                assert (layer.block_size, layer.scales_kind) == (64, DoubleScales)
            found[place] = kept, (layer.decoded() if kept else layer.weight).detach().clone()
        assert torch.equal(
            model.encoder.embeddings.word_embeddings.weight,
            built().embeddings.word_embeddings.weight,
        )
        seen.append(found)
        return {"call": len(seen)}

    monkeypatch.setattr(experiment, "measured", measured)
    found = experiment.merges(model, tiny.test)
    assert set(found) == {"size", "kept", "again", "float", "float again"}
    names = ["again", "float", "float again"]
    assert [found[name] for name in names] == [{"call": 1}, {"call": 2}, {"call": 3}]
    sizes, shares = [], []
    for place, weight in float_weights().items():
        delta, before = deltas[place], decoded[place]
        wanted = [
            (True, by_hand("nf4", before + delta)),
            (False, weight + delta),
            (True, by_hand("nf4", weight + delta)),
        ]
        for (kept, ours), (held, theirs) in zip([s[place] for s in seen], wanted, strict=True):
            assert kept == held
            close(ours, theirs)
        # No two of them are the same.
        assert len({seen[i][place][1].sum().item() for i in range(3)}) == 3
        sizes.append((delta.square().sum() / before.square().sum()).sqrt().item())
        change = wanted[0][1] - before
        shares.append(((change * delta).sum() / delta.square().sum()).item())
    assert found["size"] == pytest.approx(fmean(sizes), rel=1e-9)
    assert found["kept"] == pytest.approx(fmean(shares), rel=1e-9)
    assert all(module.merged for module in additions(model).values())


def test_merges_are_measured_as_their_networks_are(tiny):
    model, deltas = stirred()
    with torch.no_grad():
        model.head.weight.mul_(20)
    decoded = {name: module.weights() for name, module in additions(model).items()}
    found = experiment.merges(model, tiny.test)
    wanted = {
        "again": lambda place: by_hand("nf4", decoded[place] + deltas[place]),
        "float": lambda place: float_weights()[place] + deltas[place],
        "float again": lambda place: by_hand("nf4", float_weights()[place] + deltas[place]),
    }
    for name, weight in wanted.items():
        other = Classifier(encoder.pretrained_encoder(), model.head)
        with torch.no_grad():
            for place in PLACES:
                other.encoder.get_submodule(place).weight.copy_(weight(place))
        theirs = lora_reviews.measured(other, tiny.test)
        assert set(found[name]) == set(theirs) == MEASURES
        # float64 through two layers
        assert found[name] == pytest.approx(theirs, rel=1e-9)
    assert len({found[name]["log_loss"] for name in wanted}) == 3


# A whole seed


def test_a_run_has_every_base(tiny):
    found = experiment.run(2, experiment.Scale(16, 2))
    assert set(found) == {"short", "ways", "heads", "merges"}
    assert list(found["ways"]) == list(found["heads"]) == BASES
    for way in found["ways"].values():
        assert set(way) == MEASURES | {"trainable", "late_loss", "seconds", "frozen", "base"}
        assert way["frozen"] == way["base"] == 1.0
        # A and B of rank 4, at four maps of the attention and two of the branch.
        assert way["trainable"] == LAYERS * 4 * (4 * 2 * WIDTH + 2 * (WIDTH + INNER))
        assert all(math.isfinite(value) for value in way.values())
    assert len({way["late_loss"] for way in found["ways"].values()}) == 5
    assert len({head["log_loss"] for head in found["heads"].values()}) == 5
    assert all(set(head) == MEASURES for head in found["heads"].values())
    assert set(found["short"]) == {"late_loss"}
    assert found["merges"]["size"] > 0
    rows = splits.drawn(tiny.pool, 16, 10_002)
    # A seed is all that each of them depends on, and they stand under their names.
    torch.randn(3)
    base = experiment.BASES["nf3"]
    again = lora_reviews.tuned(experiment.low_rank(base), rows, tiny.test, 2, 3e-3, 2)[1]
    for key in set(again) - {"seconds"}:
        assert found["ways"]["nf3"][key] == again[key]
    assert found["heads"]["nf3"] == experiment.head_alone(base, rows, tiny.test, 2, 2)


def test_which_model_is_merged_and_what_is_short(tiny, monkeypatch):
    calls, merged = [], []

    def tuned(*arguments):
        calls.append(arguments)
        n = len(calls)
        return f"model {n}", {"late_loss": float(n)}

    def merges(*arguments):
        merged.append(arguments)
        return "merged"

    monkeypatch.setattr(experiment, "tuned", tuned)
    monkeypatch.setattr(experiment, "merges", merges)
    monkeypatch.setattr(experiment, "head_alone", lambda *arguments: arguments)
    monkeypatch.setattr(experiment, "untouched", lambda *arguments: arguments[0] != "model 4")
    found = experiment.run(7, experiment.Scale(48, 3))
    assert len(calls) == 6
    assert found["merges"] == "merged"
    ((model, test),) = merged
    assert (model, test is tiny.test) == ("model 1", True)
    rows = splits.drawn(tiny.pool, 48, 10_007)
    for i, name in enumerate(BASES):
        way, got, test, *how = calls[i]
        same_rows(got, rows)
        assert test is tiny.test
        assert how == [7, 3e-3, 3]
        assert found["ways"][name] == {"late_loss": i + 1, "base": float(i != 3)}
        base, got, test, *how = found["heads"][name]
        assert base is experiment.BASES[name]
        same_rows(got, rows)
        assert (test is tiny.test, how) == (True, [7, 3])
    way, got, test, *how = calls[-1]
    same_rows(got, splits.drawn(tiny.pool, 160, 10_007))
    same_rows(test, tiny.test.at(torch.arange(64)))
    assert how == [7, 3e-3, 1]
    assert found["short"] == {"late_loss": 6.0}
    # It is the first base.
    model = encoder.classifier(2, torch.Generator().manual_seed(0))
    inject(model.encoder, lambda name, _: name in PLACES, way.make(torch.Generator()))
    assert experiment.untouched(model, experiment.BASES["nf4"])
    (layer, *_) = additions(model).values()
    assert (layer.layer.block_size, layer.layer.scales_kind) == (64, DoubleScales)
