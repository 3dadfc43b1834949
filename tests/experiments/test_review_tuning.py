"""Thirteen ways to tune, on a tiny encoder: what each trains, and what is measured afterwards."""

import copy
import math

import pytest
import torch
from transformers import BertConfig, BertModel

from gradbook import delta_svd
from gradbook.experiments import review_tuning as experiment
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.language.encoder import Classifier
from gradbook.peft import adapter_drop, adapters
from gradbook.peft.ia3 import Scaled, ScaledInput
from gradbook.peft.injection import count

COLUMNS = {"trainable", "accuracy", "log_loss", "late_loss", "seconds", "frozen"}
# Vocabulary, places, width, feed-forward: of the tiny encoder and of MiniLM.
TINY, REAL = (30_522, 64, 16, 32), (30_522, 512, 384, 1_536)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(words, places, d, f):
    """What every way trains besides the head, as a formula."""
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d

    def houlsby(m):
        return 12 * (2 * m * d + m + d) + 13 * 2 * d

    one = 6 * (2 * 16 * d + 16 + d)
    return {
        "head": 0,
        "top 1": layer,
        "top 2": 2 * layer,
        "all": (words + places + 2) * d + 2 * d + 6 * layer,
        "biases": 6 * (7 * d + f) + d,
        "ia3": 6 * (2 * d + f),
        "adapters 4": houlsby(4),
        "adapters 16": houlsby(16),
        "adapters 64": houlsby(64),
        "one adapter 16": one,
        "parallel 16": one,
        "compacter 16": 4**3 + 12 * 3 * (d + 16),
        "dropping 16": houlsby(16),
    }


def shapes():
    """MiniLM's network without numbers."""
    words, places, width, inner = REAL
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=inner,
        max_position_embeddings=places,
    )
    with torch.device("meta"):
        return BertModel(config, add_pooling_layer=False)


def prepared(name, seed=0):
    """A classifier on the tiny encoder, as a way leaves it before training."""
    drawn = generator(seed)
    model = encoder.classifier(2, drawn)
    experiment.WAYS[name].prepare(model, drawn)
    return model


def shaken(name, rows, by=0.1):
    """A classifier whose tuned numbers are far from their start, and rows that it gets all right."""
    model, drawn = prepared(name), generator(11)
    with torch.no_grad():
        for part in model.parameters():
            if part.requires_grad:
                part.add_(by * torch.randn(part.shape, generator=drawn))
        logits = tuning.predicted(model, rows.tokens, 32)
        # A half of the rows is of each class, so that any other model errs.
        model.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return model, rows._replace(labels=tuning.predicted(model, rows.tokens, 32).argmax(1))


def states(model):
    return {name: part.clone() for name, part in model.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def tiny(monkeypatch, tiny_encoder, tiny_movies):
    """Stands in for the encoder and the sentences, and shortens the training."""
    monkeypatch.setattr(experiment, "SHORT", experiment.Scale(48, 1))
    monkeypatch.setattr(experiment, "FEW", 90)
    monkeypatch.setattr(experiment, "RANKS", (1, 2))
    return tiny_movies


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(model, *arguments):
        seen.append((model, *arguments))
        return tuning.Course([4.0, 1.0, 2.0, 6.0], 0.25)

    monkeypatch.setattr(tuning, "fit", fit)
    return seen


# The ways


def test_real_sizes_are_those_of_the_table():
    found = counts(*REAL)
    assert found["all"] == 22_565_376
    assert (found["biases"], found["ia3"]) == (25_728, 13_824)
    assert (found["adapters 16"], found["one adapter 16"]) == (162_240, 76_128)
    assert found["compacter 16"] == 14_464


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_way_trains_as_many_numbers_as_its_formula_says(name, tiny_encoder, monkeypatch):
    model = prepared(name)
    assert count(model)[0] - 2 * 17 == counts(*TINY)[name]
    assert all(part.requires_grad for part in model.head.parameters())
    monkeypatch.setattr(encoder, "pretrained_encoder", shapes)
    assert count(prepared(name))[0] - 2 * 385 == counts(*REAL)[name]


def test_real_sizes_are_those_of_the_pretrained_encoder(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    real, ours = encoder.pretrained_encoder().state_dict(), shapes().state_dict()
    assert {name: part.shape for name, part in real.items()} == {
        name: part.shape for name, part in ours.items()
    }


def test_ways_of_a_model_as_it_is_train_the_layers_of_their_names(tiny_encoder):
    names = {
        name: {part for part, p in prepared(name).named_parameters() if p.requires_grad}
        for name in ("head", "top 1", "top 2", "all", "biases")
    }
    every = {name for name, _ in prepared("all").named_parameters()}
    head = {"head.weight", "head.bias"}

    def of(*layers):
        parts = [f"encoder.encoder.layer.{i}." for i in layers]
        return {name for name in every if any(part in name for part in parts)}

    assert names["head"] == head
    assert names["top 1"] == head | of(5)
    assert names["top 2"] == head | of(4, 5)
    assert names["all"] == every
    assert names["biases"] == head | {name for name in every if name.endswith("bias")}


def test_ways_that_add_put_the_right_things_in_the_right_places(tiny_encoder):
    def places(name, *kinds):
        modules = prepared(name).encoder.encoder.layer[3].named_modules()
        return {place: module for place, module in modules if isinstance(module, kinds)}

    found = places("ia3", Scaled, ScaledInput)
    assert {place: type(module) for place, module in found.items()} == {
        "attention.self.key": Scaled,
        "attention.self.value": Scaled,
        "output.dense": ScaledInput,
    }
    two = {"attention.output.dense", "output.dense"}
    for name in ("adapters 4", "adapters 16", "adapters 64", "dropping 16"):
        found = places(name, adapters.Serial)
        assert set(found) == two
        assert {m.adapter.down.shape[1] for m in found.values()} == {int(name.split()[-1])}
    assert set(places("compacter 16", adapters.Serial)) == two
    assert set(places("one adapter 16", adapters.Serial)) == {"output.dense"}
    assert set(places("parallel 16", adapters.Parallel)) == {"output"}


def test_all_ways_start_from_one_head_and_one_encoder(tiny_encoder):
    heads = {tuple(prepared(name).head.weight.flatten().tolist()) for name in experiment.WAYS}
    assert len(heads) == 1
    first = {part.numpy().tobytes() for part in tiny_encoder().state_dict().values()}
    for name in experiment.WAYS:
        states = prepared(name).encoder.state_dict().values()
        assert first <= {part.numpy().tobytes() for part in states}


def test_every_family_has_a_rate():
    assert {way.family for way in experiment.WAYS.values()} == set(experiment.RATES)
    assert all(0 < rate < 1 for rate in experiment.RATES.values())


# One training


@pytest.mark.parametrize("name", experiment.WAYS)
def test_training_moves_what_trains_and_nothing_else(name, tiny_encoder, sentences):
    rows, test = sentences(40, 1), sentences(20, 2)
    before, start = states(prepared(name, 20_003)), prepared(name, 20_003)
    model, found = experiment.tuned(name, rows, test, 3, 1e-2, 1)
    after = states(model)
    trainable = {
        part for part, p in start.named_parameters(remove_duplicate=False) if p.requires_grad
    }
    assert {"head.weight", "head.bias"} <= moved(before, after) <= trainable
    assert moved(before, after) - {"head.weight", "head.bias"} or name == "head"
    assert set(found) == COLUMNS
    assert found["frozen"] == 1.0
    assert found["trainable"] == counts(*TINY)[name]
    assert found["accuracy"] == tuning.accuracy(model, *test, 32)
    assert found["log_loss"] == tuning.log_loss(model, *test, 32)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", [name for name in experiment.WAYS if name != "all"])
def test_a_frozen_number_that_moves_is_seen(name, tiny_encoder, sentences, monkeypatch):
    parts = [part for part, p in prepared(name).named_parameters() if not p.requires_grad]
    assert parts
    for chosen in (parts[0], parts[-1]):

        def fit(model, *_, chosen=chosen):
            inner = getattr(model, "model", model)
            with torch.no_grad():
                inner.get_parameter(chosen).view(-1)[-1] += 1e-3
            return tuning.Course([1.0], 0.0)

        monkeypatch.setattr(tuning, "fit", fit)
        found = experiment.tuned(name, sentences(4), sentences(4), 0, 1e-3, 1)[1]
        assert found["frozen"] == 0.0


def test_a_training_has_its_rows_its_setting_and_the_order_of_its_seed(
    fits, tiny_encoder, sentences
):
    rows, test = sentences(8, 1), sentences(4, 2)
    for name in ("adapters 16", "dropping 16"):
        model, found = experiment.tuned(name, rows, test, 3, 2e-3, 5)
        trained, tokens, labels, setting, seed = fits.pop()
        assert type(trained) is (experiment.Dropping if name == "dropping 16" else Classifier)
        assert getattr(trained, "model", trained) is model
        assert (tokens, labels) == (rows.tokens, rows.labels)
        assert setting == tuning.Setting(5, experiment.BATCH, 2e-3)
        assert seed == 30_003
        # The last half of the steps, and what the course says of a step.
        assert (found["late_loss"], found["seconds"]) == (4.0, 0.25)


def test_a_seed_is_all_that_a_training_depends_on(tiny_encoder, sentences):
    rows, test = sentences(40, 1), sentences(20, 2)

    def tuned(name, seed):
        found = experiment.tuned(name, rows, test, seed, 1e-3, 1)[1]
        return {key: value for key, value in found.items() if key != "seconds"}

    for name in ("compacter 16", "dropping 16"):
        first = tuned(name, 0)
        torch.randn(3)
        assert tuned(name, 0) == first
        assert tuned(name, 1) != first
    # Dropping is another training of the same model.
    assert tuned("dropping 16", 0) != tuned("adapters 16", 0)


# Afterwards


def test_deltas_are_truncated_matrix_by_matrix(tiny, monkeypatch):
    ranks = (1, 2, 4, 8, 15, 16)
    monkeypatch.setattr(experiment, "RANKS", ranks)
    model, test = shaken("all", tiny.test, 0.05)
    found = experiment.by_rank(model, test)
    assert found["ranks"] == list(ranks)
    assert found["exact"] == found["accuracy"][-1] == tuning.accuracy(model, *test, 32) == 1
    assert found["error"] == sorted(set(found["error"]), reverse=True)
    assert found["error"][-1] == 0
    first = encoder.pretrained_encoder().state_dict()
    deltas = {key: value - first[key] for key, value in model.encoder.state_dict().items()}
    matrices = [key for key in deltas if "layer." in key and deltas[key].ndim == 2]
    assert len(matrices) == 36
    norms = [(deltas[key].norm() / first[key].norm()).item() for key in matrices]
    assert found["norms"] == pytest.approx([min(norms), max(norms)], rel=1e-6)
    for i, rank in enumerate(ranks):
        other, errors = copy.deepcopy(model), []
        for key, delta in deltas.items():
            if delta.ndim == 2:
                u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
                kept = (u[:, :rank] * s[:rank] @ v[:rank]).float()
                with torch.no_grad():
                    other.encoder.get_parameter(key).copy_(first[key] + kept)
                if key in matrices:
                    errors.append(s[rank:].norm().item() / s.norm().item())
        # A row whose logits nearly tie may fall on the other side.
        assert abs(tuning.accuracy(other, *test, 32) - found["accuracy"][i]) <= 1.5 / 210
        assert found["error"][i] == pytest.approx(sum(errors) / 36, rel=1e-4, abs=1e-6)
    assert len(set(found["accuracy"])) > 3


def test_after_truncation_the_model_is_as_before_bit_for_bit(tiny):
    model, test = shaken("all", tiny.test, 0.05)
    before, found = states(model), experiment.by_rank(model, test)
    assert moved(before, states(model)) == set()
    # Whole changes, though the last rank tried was 2.
    assert found["accuracy"][-1] < found["exact"] == 1


def test_without_a_change_there_is_nothing_to_truncate(tiny):
    found = experiment.by_rank(prepared("all"), tiny.test)
    assert found["error"] == [0.0, 0.0]
    assert found["norms"] == [0.0, 0.0]
    assert len({*found["accuracy"], found["exact"]}) == 1


def test_accuracies_without_the_first_adapters(tiny):
    model, test = shaken("adapters 16", tiny.test)
    before, found = states(model), experiment.by_dropped(model, test)
    assert moved(before, states(model)) == set()
    assert found[0] == tuning.accuracy(model, *test, 32)
    # A bottleneck that adds nothing is none, and norms and head stay tuned.
    for layers in range(1, 7):
        silent = copy.deepcopy(model)
        with torch.no_grad():
            for adapter in adapters.adapters_of(silent)[: 2 * layers]:
                adapter.up.zero_()
                adapter.up_bias.zero_()
        assert found[layers] == tuning.accuracy(silent, *test, 32)
    plain = encoder.classifier(2, generator())
    tuned = {name.replace("layer.dense", "dense"): part for name, part in states(model).items()}
    own = {name: tuned[name] for name in states(plain) if "LayerNorm" in name or "head" in name}
    plain.load_state_dict(states(plain) | own)
    assert len(own) == 2 * 13 + 2
    assert found[6] == tuning.accuracy(plain, *test, 32)
    assert len(set(found)) == len(found) == 7


def test_dropping_passes_over_what_it_draws_and_leaves_the_adapters_on(tiny_encoder, sentences):
    model, (tokens, _) = shaken("dropping 16", sentences(5))
    dropping, again = experiment.Dropping(model, generator(4)), generator(4)
    drawn = [adapter_drop.drawn_layers(6, again) for _ in range(12)]
    assert len(set(drawn)) > 3
    whole = model(*tokens)
    for layers in drawn:
        found = dropping(*tokens)
        with adapter_drop.dropped(model.encoder, layers):
            expected = model(*tokens)
        assert torch.equal(found, expected)
        assert torch.equal(found, whole) == (layers == 0)
        wrappers = [m for m in model.modules() if isinstance(m, adapters.Serial)]
        assert not any(wrapper.passed_over for wrapper in wrappers)
    assert torch.equal(dropping.generator.get_state(), again.get_state())


def test_dropping_trains_what_its_model_trains(tiny_encoder):
    model = prepared("dropping 16")
    dropping = experiment.Dropping(model, generator())
    assert [id(p) for p in dropping.parameters()] == [id(p) for p in model.parameters()]


# A run


def test_a_tiny_run_has_all_its_parts(tiny, monkeypatch):
    kept, models, tuned = [], {}, experiment.tuned

    def noted(name, rows, test, seed, rate, epochs):
        kept.append((name, rows, test, seed, rate, epochs))
        model, measured = tuned(name, rows, test, seed, rate, epochs)
        if name in ("all", "adapters 16", "dropping 16"):
            models.setdefault(name, model)
        return model, measured

    monkeypatch.setattr(experiment, "tuned", noted)
    found = experiment.run(1, experiment.Scale(32, 1))
    assert set(found) == {"short", "ways", "svd", "dropped"}
    assert list(found["ways"]) == list(experiment.WAYS)
    assert all(set(way) == COLUMNS for way in found["ways"].values())
    assert all(way["frozen"] == 1.0 for way in found["ways"].values())
    assert set(found["svd"]) == {"ranks", "accuracy", "error", "exact", "norms"}
    # These two on the first rows to test on.
    few = tiny.test.at(torch.arange(90))
    for name, model in models.items():
        accuracy = tuning.accuracy(model, *few, 32)
        first = found["svd"]["exact"] if name == "all" else found["dropped"][name][0]
        assert first == accuracy
    assert 0 < found["svd"]["norms"][0] < found["svd"]["norms"][1]
    assert set(found["dropped"]) == {"adapters 16", "dropping 16"}
    assert all(len(accuracies) == 7 for accuracies in found["dropped"].values())
    assert found["short"] == experiment.run_short(1)
    rows = splits.drawn(tiny.pool, 32, 10_001)
    for name, learnt, test, seed, rate, epochs in kept[: len(experiment.WAYS)]:
        assert torch.equal(learnt.tokens.ids, rows.tokens.ids)
        assert torch.equal(learnt.labels, rows.labels)
        assert test is tiny.test
        assert rate == experiment.RATES[experiment.WAYS[name].family]
        assert (seed, epochs) == (1, 1)


def test_a_short_run(fits, tiny_encoder, sentences, monkeypatch):
    split = splits.Split(sentences(170, 1), None, sentences(210, 3))
    monkeypatch.setattr(splits, "movies", lambda: split)
    measured = []
    monkeypatch.setattr(tuning, "accuracy", lambda model, *rows: measured.append(rows) or 0.75)
    assert experiment.run_short(2) == {"late_loss": 4.0, "accuracy": 0.75}
    model, tokens, labels, setting, seed = fits.pop()
    assert len(adapters.adapters_of(model)) == 12
    assert torch.equal(tokens.ids, splits.drawn(split.pool, 160, 10_002).tokens.ids)
    # Ten steps.
    assert (len(labels), setting) == (160, tuning.Setting(1, 16, experiment.RATES["adapters"]))
    ((test, labels, _),) = measured
    assert torch.equal(test.ids, split.test.tokens.ids[:200])
    assert torch.equal(labels, split.test.labels[:200])


def test_the_record_says_what_it_depends_on():
    assert experiment.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.data_digest() == reviews.SHA256["movie"]
    assert experiment.run.__defaults__ == (experiment.Scale(1_000, 2),)
    assert experiment.FEW == 500
    # Truncated to the largest rank a square matrix still takes less than whole.
    assert delta_svd.stored(384, 384, max(experiment.RANKS)) < 384 * 384
