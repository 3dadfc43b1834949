"""AdapterFusion on two sources and a target, on a tiny encoder and snippets of our own."""

import math

import pytest
import torch

from gradbook.experiments import adapter_fusion as experiment
from gradbook.experiments import review_tuning
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.peft import adapters, fusion
from gradbook.peft.fusion import Fusion

FUSED = ("fused", "fused_with_own")
SHORT = experiment.Scale((16, 1), ((12, 1),))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bank(seed, spread=0.5):
    """Adapters for the tiny encoder that do much."""
    model, drawn = encoder.pretrained_encoder(), generator(seed)
    adapters.pfeiffer(model, experiment.SIZE, drawn)
    found = adapters.adapters_of(model)
    with torch.no_grad():
        for adapter in found:
            for part in adapter.parameters():
                part.normal_(0, spread, generator=drawn)
    return found


def values(banks):
    return [
        part.clone() for adapters in banks for one in adapters for part in one.state_dict().values()
    ]


def fusions(model):
    return [module for module in model.modules() if isinstance(module, Fusion)]


def trained(model):
    return {name for name, part in model.named_parameters() if part.requires_grad}


@pytest.fixture
def tiny(monkeypatch, tiny_encoder, tiny_movies, tiny_reviews):
    """Stands in for the encoder, the films and the goods, and shortens the training."""
    tiny_reviews(movie=[3.0, -0.5] * 20, amazon=[2.0, -1.5, 0.25] * 20)
    monkeypatch.setattr(experiment, "TEST", 10)
    monkeypatch.setattr(experiment, "SHORT", SHORT)
    return tiny_movies


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training, and trains."""
    seen, fit = [], tuning.fit

    def noted(*arguments):
        seen.append(arguments)
        return fit(*arguments)

    monkeypatch.setattr(tuning, "fit", noted)
    return seen


# The texts


def test_goods_are_parted_in_the_order_of_the_file(tiny_encoder, tiny_reviews):
    scores = [2.0, -1.5, 0.25, 0.5, -0.5, -0.49] * 160
    tiny_reviews(amazon=scores)
    rows, test = experiment.goods()
    kept = [i for i, score in enumerate(scores) if abs(score) >= 0.5]
    assert (len(rows.labels), len(test.labels)) == (len(kept) - 400, 400)
    every = encoder.encode([f"amazon {i}" for i in kept])
    assert torch.equal(torch.cat([rows.tokens.ids, test.tokens.ids]), every.ids)
    assert torch.equal(torch.cat([rows.tokens.mask, test.tokens.mask]), every.mask)
    labels = torch.cat([rows.labels, test.labels])
    assert labels.tolist() == [int(scores[i] > 0) for i in kept]
    parts = [set(map(tuple, part.tokens.ids.tolist())) for part in (rows, test)]
    assert not parts[0] & parts[1]
    assert [len(part) for part in parts] == [len(kept) - 400, 400]


def test_strength_is_the_size_of_the_score(tiny_encoder, tiny_reviews):
    scores = [2.0, -2.0, 1.99, -1.01, 1.0, -1.0, 0.0, 3.5, -4.0, 0.25]
    tiny_reviews(movie=scores)
    found = experiment.strengths()
    assert found.labels.tolist() == [1, 1, 0, 0, 0, 1, 1, 0]
    assert found.labels.dtype == torch.int64
    every = encoder.encode([f"movie {i}" for i in (0, 1, 4, 5, 6, 7, 8, 9)])
    assert torch.equal(found.tokens.ids, every.ids)
    assert torch.equal(found.tokens.mask, every.mask)


# How much a fusion listens


def model_of(banks, spread=1.0):
    """A classifier on fusions that listen to one adapter here, to another there."""
    drawn = generator(3)
    model = encoder.classifier(2, drawn)
    fusion.fuse(model.encoder, banks, drawn)
    with torch.no_grad():
        for place in fusions(model):
            place.query.normal_(0, spread, generator=drawn)
            place.key.normal_(0, spread, generator=drawn)
    return model


def test_weights_are_those_of_all_pieces_of_all_texts(tiny_encoder, sentences):
    banks, rows = [bank(0), bank(1), bank(2)], sentences(12)
    model = model_of(banks)
    found = experiment.listened(model, rows)
    assert len(found) == 3
    assert sum(found) == pytest.approx(1, abs=1e-6)
    assert not any(place._forward_pre_hooks for place in fusions(model))
    # Text by text without padding; softmax, scores and bottlenecks written out.
    by_place = [[] for _ in range(6)]
    outputs = [layer.output.dense.layer for layer in model.encoder.encoder.layer]
    heard = []
    hooks = [dense.register_forward_hook(lambda *call: heard.append(call[2])) for dense in outputs]
    with torch.no_grad():
        for ids, mask in zip(*rows.tokens, strict=True):
            heard.clear()
            model(ids[mask.bool()][None], torch.ones(1, mask.sum(), dtype=torch.int64))
            for i, (place, h) in enumerate(zip(fusions(model), heard, strict=True)):
                scores = []
                for one in (bank[i] for bank in banks):
                    inner = torch.nn.functional.gelu(h[0] @ one.down + one.down_bias)
                    z = inner @ one.up + one.up_bias
                    scores.append(((h[0] @ place.query) * (z @ place.key)).sum(-1))
                by_place[i].append(torch.stack(scores, -1).softmax(-1))
    for hook in hooks:
        hook.remove()
    expected = torch.stack([torch.cat(weights).mean(0) for weights in by_place]).mean(0)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(found) - min(found) > 1e-2


def test_the_first_two_hundred_texts_are_read(tiny_encoder, sentences):
    model, rows = model_of([bank(0), bank(1)]), sentences(230)
    first = rows.at(torch.arange(200))
    assert experiment.listened(model, rows) == experiment.listened(model, first)
    assert experiment.listened(model, rows) != experiment.listened(
        model, rows.at(torch.arange(199))
    )


# The ways


def test_five_ways_are_compared(tiny, fits, sentences):
    banks, rows, test = [bank(0), bank(1)], sentences(20, 4), sentences(14, 5)
    before = values(banks)
    found = experiment.compared(banks, rows, 2, test, 1)
    assert set(found) == {"accuracy", "weights"}
    assert set(found["accuracy"]) == {"own", "head", "films", *FUSED}
    assert {key: len(weights) for key, weights in found["weights"].items()} == dict(
        zip(FUSED, (2, 3), strict=True)
    )
    assert all(sum(w) == pytest.approx(1, abs=1e-6) for w in found["weights"].values())
    # The sources' own adapters are as before.
    assert all(map(torch.equal, before, values(banks)))
    models = dict(zip(("own", "head", "films", *FUSED), (fit[0] for fit in fits), strict=True))
    for name, model in models.items():
        assert found["accuracy"][name] == tuning.accuracy(model, *test, 32)
        if name in FUSED:
            assert found["weights"][name] == experiment.listened(model, test)
    head = {"head.weight", "head.bias"}
    assert trained(models["head"]) == trained(models["films"]) == head
    assert trained(models["own"]) == head | {
        name for name, _ in models["own"].named_parameters() if ".adapter." in name
    }
    for name in FUSED:
        names = {
            f"encoder.encoder.layer.{i}.output.dense.adapter.{part}"
            for i in range(6)
            for part in ("query", "key", "value")
        }
        assert trained(models[name]) == head | names


def test_trainings_have_their_rows_their_rates_and_their_seeds(tiny, fits, sentences):
    rows = sentences(20, 4)
    experiment.compared([bank(0), bank(1)], rows, 2, sentences(14, 5), 1)
    kinds = ("adapter", "head", "head", "fusion", "fusion")
    for i, ((_, tokens, labels, setting, seed), kind) in enumerate(zip(fits, kinds, strict=True)):
        assert (tokens, labels) == (rows.tokens, rows.labels)
        assert setting == tuning.Setting(2, experiment.BATCH, experiment.RATES[kind])
        assert seed == 30_001 + 100 * (i == 0)


def test_sources_stay_as_they_are_while_what_fuses_them_learns(tiny, fits, sentences):
    banks = [bank(0), bank(1)]
    experiment.compared(banks, sentences(20, 4), 2, sentences(14, 5), 1)
    own, _, _, *models = (fit[0] for fit in fits)
    ours = [banks, [*banks, adapters.adapters_of(own.encoder)]]
    for model, expected in zip(models, ours, strict=True):
        places = fusions(model)
        kept = [[place.adapters[i] for place in places] for i in range(len(expected))]
        assert all(map(torch.equal, values(kept), values(expected)))
        assert len(values(kept)) == len(expected) * 6 * 4
        assert not any(torch.equal(place.value, torch.eye(16)) for place in places)
    plain = encoder.pretrained_encoder().state_dict()
    for model in models:
        inner = {
            name.replace("dense.layer.", "dense."): part
            for name, part in model.encoder.state_dict().items()
        }
        assert all(torch.equal(inner[name], part) for name, part in plain.items())


def test_one_bank_with_the_identity_is_that_adapter(tiny, fits, sentences):
    films, rows = bank(0), sentences(20, 4)
    experiment.compared([films, bank(1)], rows, 2, sentences(14, 5), 1)
    fused = fits[2][0]
    assert all(torch.equal(place.value, torch.eye(16)) for place in fusions(fused))
    single = encoder.classifier(2, generator())
    adapters.pfeiffer(single.encoder, experiment.SIZE, generator())
    for ours, theirs in zip(adapters.adapters_of(single.encoder), films, strict=True):
        ours.load_state_dict(theirs.state_dict())
    single.head.load_state_dict(fused.head.state_dict())
    with torch.no_grad():
        found, expected = fused(*rows.tokens), single(*rows.tokens)
        plain = fits[1][0](*rows.tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2


def test_heads_of_all_but_the_own_start_alike(tiny, monkeypatch, sentences):
    heads = []

    def fit(model, *_):
        heads.append(model.head.weight.detach().clone())

    monkeypatch.setattr(tuning, "fit", fit)
    experiment.compared([bank(0), bank(1)], sentences(20, 4), 2, sentences(14, 5), 1)
    own, *others = heads
    assert all(torch.equal(others[0], other) for other in others)
    assert not torch.equal(own, others[0])


# A run


def test_sources_are_trained_each_on_its_own_rows(tiny, fits):
    banks = experiment.sources(2, SHORT)
    assert [len(bank) for bank in banks] == [6, 6]
    pools = (tiny.pool, experiment.strengths())
    for i, (model, tokens, labels, setting, seed) in enumerate(fits):
        rows = splits.drawn(pools[i], 16, 10_002 + i)
        assert torch.equal(tokens.ids, rows.tokens.ids)
        assert torch.equal(labels, rows.labels)
        assert setting == tuning.Setting(1, 16, experiment.RATES["adapter"])
        assert seed == 30_002 + 1000 * i
        found = adapters.adapters_of(model.encoder)
        assert all(a is b for a, b in zip(found, banks[i], strict=True))
        assert {one.down.shape for one in found} == {(16, experiment.SIZE)}
        assert trained(model) == {"head.weight", "head.bias"} | {
            name for name, _ in model.named_parameters() if ".adapter." in name
        }
    assert not torch.equal(banks[0][0].down, banks[1][0].down)


def test_a_tiny_run_has_all_its_parts(tiny):
    scale = experiment.Scale((16, 1), ((8, 2), (20, 1)))
    found = experiment.run(0, scale)
    assert set(found) == {"short", "targets"}
    assert list(found["targets"]) == ["8", "20"]
    for target in found["targets"].values():
        assert set(target["accuracy"]) == {"own", "head", "films", *FUSED}
        assert set(target["weights"]) == set(FUSED)
    assert found["short"] == experiment.run_short(0)
    assert experiment.targets(0, scale) == found["targets"]


def test_targets_learn_from_the_first_part_and_are_measured_on_the_last(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(experiment, "sources", lambda *call: ("banks", *call))
    monkeypatch.setattr(experiment, "compared", lambda *call: calls.append(call) or {})
    scale = experiment.Scale((16, 1), ((8, 2), (20, 1)))
    assert experiment.targets(3, scale) == {"8": {}, "20": {}}
    pool, test = experiment.goods()
    for (banks, rows, epochs, measured, seed), (n, passes) in zip(
        calls, scale.targets, strict=True
    ):
        assert banks == ("banks", 3, scale)
        assert torch.equal(rows.tokens.ids, splits.drawn(pool, n, 10_003).tokens.ids)
        assert torch.equal(measured.tokens.ids, test.tokens.ids)
        assert (epochs, seed) == (passes, 3)


def test_an_untrained_fusion_of_two_nearly_averages(tiny, monkeypatch):
    found = experiment.run_short(0)
    assert set(found) == {"first", "apart"}
    assert found["first"] == pytest.approx(0.5, abs=0.02)
    assert found["first"] != 0.5
    assert experiment.run_short(0) == found != experiment.run_short(1)
    # Against the encoder with and without them, written out.
    banks = [bank(0), bank(1)]
    monkeypatch.setattr(experiment, "sources", lambda seed, scale: banks)
    rows = splits.drawn(experiment.goods()[0], 12, 10_000)
    drawn = generator(20_000)
    plain = encoder.classifier(2, drawn)
    with torch.no_grad():
        before = plain(*rows.tokens)
        fusion.fuse(plain.encoder, banks, drawn)
        gaps = (plain(*rows.tokens) - before).flatten().tolist()
    found = experiment.run_short(0)
    assert found["apart"] == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / 24), rel=1e-4)
    assert found["first"] == experiment.listened(plain, rows)[0]


def test_the_rates_are_those_of_the_comparison_of_ways():
    assert experiment.RATES["head"] == review_tuning.RATES["head"]
    assert experiment.RATES["adapter"] == review_tuning.RATES["adapters"]
    assert 0 < experiment.RATES["fusion"] < experiment.RATES["adapter"]


def test_the_record_says_what_it_depends_on():
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.data_digest().split() == [reviews.SHA256["movie"], reviews.SHA256["amazon"]]
    # The sources' strong and weak have a gap between them.
    assert experiment.WEAK < experiment.STRONG
