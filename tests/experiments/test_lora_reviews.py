"""Fifteen ways of LoRA's family, on a tiny encoder: what each trains, how, and what is measured."""

import math
from statistics import fmean

import pytest
import torch
from transformers import BertConfig, BertModel

from gradbook.experiments import lora_reviews as experiment
from gradbook.experiments import review_tuning
from gradbook.language import encoder, reviews, splits, tuning
from gradbook.language.encoder import Tokens
from gradbook.language.schedule import share
from gradbook.language.splits import Rows
from gradbook.peft import adalora
from gradbook.peft.dora import DoRALinear
from gradbook.peft.injection import matrix
from gradbook.peft.lora import LoRALinear
from gradbook.peft.svd_linear import SVDLinear, ranks
from gradbook.peft.vera import VeRALinear, projections

# Width and feed-forward of the tiny encoder and of MiniLM.
TINY, REAL = (16, 32), (384, 1_536)
COLUMNS = {"trainable", "accuracy", "log_loss", "few", "late_loss", "seconds", "frozen"}
ONE = Rows(Tokens(torch.tensor([[101, 2307, 102]]), torch.ones(1, 3).long()), torch.tensor([1]))
COURSE = tuning.Course([4.0, 1.0, 2.0, 6.0, 7.0], 0.25)

QUERY, KEY, VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))
OUT, UP, DOWN = "attention.output.dense", "intermediate.dense", "output.dense"
BOTH, ATTENTION, INNER = {QUERY, VALUE}, {QUERY, KEY, VALUE, OUT}, {UP, DOWN}
# Of every way: the kind, its maps in every layer, the rank, and the factor.
WANTED = {
    "lora 1": (LoRALinear, BOTH, 1, 8.0),
    "lora 4": (LoRALinear, BOTH, 4, 2.0),
    "lora 16": (LoRALinear, BOTH, 16, 0.5),
    "rs 16": (LoRALinear, BOTH, 16, 1.0),
    "query 8": (LoRALinear, {QUERY}, 8, 1.0),
    "value 8": (LoRALinear, {VALUE}, 8, 1.0),
    "attention 2": (LoRALinear, ATTENTION, 2, 4.0),
    "inner 2": (LoRALinear, INNER, 2, 4.0),
    "all 1": (LoRALinear, ATTENTION | INNER, 1, 8.0),
    "all 4": (LoRALinear, ATTENTION | INNER, 4, 2.0),
    "adalora 4": (SVDLinear, ATTENTION | INNER, 6, 8 / 6),
    "dora 4": (DoRALinear, BOTH, 4, 2.0),
    "pissa 4": (LoRALinear, BOTH, 4, 2.0),
    "plus 4": (LoRALinear, BOTH, 4, 2.0),
    "vera 256": (VeRALinear, BOTH, 256, None),
}


def counts(d, f):
    """What every way trains besides the head, as a formula."""
    both, attention, inner = 12 * 2 * d, 24 * 2 * d, 12 * (d + f)
    return {
        "lora 1": both,
        "lora 4": 4 * both,
        "lora 16": 16 * both,
        "rs 16": 16 * both,
        "query 8": 4 * both,
        "value 8": 4 * both,
        "attention 2": 2 * attention,
        "inner 2": 2 * inner,
        "all 1": attention + inner,
        "all 4": 4 * (attention + inner),
        # Six triplets of each of 36 maps, each with a number of its own.
        "adalora 4": 6 * (attention + inner) + 36 * 6,
        "dora 4": 4 * both + 12 * d,
        "pissa 4": 4 * both,
        "plus 4": 4 * both,
        "vera 256": 12 * (d + 256),
    }


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def config(words, places, d, f):
    return BertConfig(
        vocab_size=words,
        hidden_size=d,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=f,
        max_position_embeddings=places,
    )


def built(name, seed=3):
    """A classifier as a way leaves it before training, and what is said of it."""
    way = experiment.WAYS[name]._replace(train=lambda *_: COURSE)
    return experiment.tuned(way, ONE, ONE, seed, 1e-2, 1)


def plain(seed=3):
    """The classifier that every way of a seed is put into."""
    return encoder.classifier(2, generator(seed + 20_000))


def additions(model, kind):
    modules = model.encoder.named_modules()
    return {place: module for place, module in modules if isinstance(module, kind)}


def states(model):
    return {name: part.clone() for name, part in model.state_dict().items()}


def moved(before, after):
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def trainable(model):
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, p in named if p.requires_grad}


@pytest.fixture
def tiny(monkeypatch, tiny_encoder):
    """Stands in for the encoder, and for its width."""
    monkeypatch.setattr(experiment, "WIDTH", TINY[0])
    return tiny_encoder


@pytest.fixture
def few(monkeypatch, tiny, tiny_movies):
    """Besides, for the sentences, and has a shorter short training and fewer few sentences."""
    monkeypatch.setattr(experiment, "SHORT", experiment.Scale(32, 1))
    monkeypatch.setattr(experiment, "FEW", 90)
    return tiny_movies


@pytest.fixture
def fits(monkeypatch):
    """Keeps the arguments of every training in the place of training."""
    seen = []

    def fit(model, *arguments, **more):
        seen.append((model, arguments, more))
        return COURSE

    monkeypatch.setattr(tuning, "fit", fit)
    return seen


@pytest.fixture
def tunings(monkeypatch):
    """Keeps the arguments of every tuning of both comparisons in the place of tuning."""
    seen = {}

    def put(module):
        def tuned(*arguments):
            seen.setdefault(module, []).append(arguments)
            n = len(seen[module])
            return f"model {n}", {"late_loss": float(n)}

        monkeypatch.setattr(module, "tuned", tuned)

    put(experiment)
    put(review_tuning)
    return seen


# What a way is


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_way_trains_as_many_numbers_as_its_formula_says(name, tiny):
    model, found = built(name)
    assert found["trainable"] == counts(*TINY)[name]
    assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("name", experiment.WAYS)
def test_real_counts(name, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(experiment, "measured", lambda *_: {})
    monkeypatch.setattr(experiment, "frozen", lambda _: [])
    # Singular values need numbers, but few words.
    place, words = ("cpu", 9) if name == "pissa 4" else ("meta", 30_522)
    with torch.random.fork_rng(devices=[]), torch.device(place):
        model = BertModel(config(words, 512, *REAL), add_pooling_layer=False)
    monkeypatch.setattr(encoder, "pretrained_encoder", lambda: model)
    assert built(name)[1]["trainable"] == counts(*REAL)[name]


def test_sizes_agree_where_they_are_compared():
    found = counts(*REAL)
    assert found == {
        "lora 1": 9_216,
        "lora 4": 36_864,
        "lora 16": 147_456,
        "rs 16": 147_456,
        "query 8": 36_864,
        "value 8": 36_864,
        "attention 2": 36_864,
        "inner 2": 46_080,
        "all 1": 41_472,
        "all 4": 165_888,
        "adalora 4": 249_048,
        "dora 4": 41_472,
        "pissa 4": 36_864,
        "plus 4": 36_864,
        "vera 256": 7_680,
    }
    # What AdaLoRA keeps, four triplets of a map on average, are LoRA's numbers and those of E.
    assert found["adalora 4"] * 2 / 3 == found["all 4"] + 36 * 4
    assert set(found) == set(experiment.WAYS) == set(WANTED)


@pytest.mark.parametrize("name", experiment.WAYS)
def test_additions_have_their_places_ranks_and_factors(name, tiny):
    kind, maps, rank, factor = WANTED[name]
    kinds = LoRALinear, SVDLinear, VeRALinear
    found = additions(built(name)[0], kinds)
    assert set(found) == {f"encoder.layer.{i}.{place}" for i in range(6) for place in maps}
    for module in found.values():
        assert type(module) is kind
        assert isinstance(module.layer, torch.nn.Linear)
        assert len(module.Q if kind is SVDLinear else module.A) == rank
        if factor is not None:
            assert module.scaling == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize("rank", [1, 4, 9, 16])
def test_a_stabilized_factor_falls_with_the_root_of_the_rank_and_is_loras_at_rank_four(rank):
    layer = torch.nn.Linear(16, 16, device="cpu")
    found = experiment.stabilized(rank)(generator())(layer).scaling
    assert found == pytest.approx(experiment.ALPHA / (2 * math.sqrt(rank)), rel=1e-15)
    same = experiment.low_rank(rank)(generator())(layer).scaling
    assert same == pytest.approx(experiment.ALPHA / rank, rel=1e-15)
    assert (found == same) == (rank == 4)


def test_all_maps_of_vera_share_one_frozen_pair(tiny):
    found = list(additions(built("vera 256")[0], VeRALinear).values())
    assert len(found) == 12
    drawn = generator(20_003)
    encoder.classifier(2, drawn)
    for part, expected in zip("AB", projections(16, 16, 256, drawn), strict=True):
        shared = getattr(found[0], part)
        assert all(getattr(module, part) is shared for module in found)
        assert torch.equal(shared, expected)
        assert not shared.requires_grad
    assert len({id(module.d) for module in found} | {id(module.b) for module in found}) == 24


# Where it starts


@pytest.mark.parametrize("name", experiment.WAYS)
def test_every_way_starts_with_the_outputs_of_the_encoder(name, tiny, sentences):
    tokens = sentences(12).tokens
    first, other = plain()(*tokens), plain(4)(*tokens)
    # DoRA adds in another order, and PiSSA takes a product out and adds it: rounding of float32
    # through six layers.
    torch.testing.assert_close(built(name)[0](*tokens), first, rtol=0, atol=2e-5)
    assert (other - first).abs().max() > 1e-3


def test_all_ways_start_from_one_head_and_one_encoder(tiny):
    first = {part.numpy().tobytes() for part in plain().state_dict().values()}
    for name in experiment.WAYS:
        own = {part.numpy().tobytes() for part in built(name)[0].state_dict().values()}
        # Only PiSSA changes matrices: the twelve that it splits.
        assert len(first - own) == (12 if name == "pissa 4" else 0)


def test_pissa_splits_the_four_largest_singular_triplets_off(tiny):
    model, whole = built("pissa 4")[0], plain().encoder
    for place, module in additions(model, LoRALinear).items():
        weight = whole.get_submodule(place).weight.detach().double()
        u, s, v = torch.linalg.svd(weight)
        product = 2 * (module.B @ module.A).detach().double()
        # float32, of entries near 1
        torch.testing.assert_close(product, u[:, :4] * s[:4] @ v[:4], rtol=0, atol=1e-5)
        rest = module.layer.weight.detach().double()
        torch.testing.assert_close(rest + product, weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_start_depends_on_its_seed_alone(name, tiny):
    first = states(built(name)[0])
    torch.randn(3)
    assert not moved(first, states(built(name)[0]))
    other = moved(first, states(built(name, 4)[0]))
    # PiSSA starts from what is there: only its head is drawn.
    assert (other == {"head.weight"}) == (name == "pissa 4")
    assert "head.weight" in other


# How it trains


def test_a_plain_training_is_given_nothing_else(fits, tiny, sentences):
    rows = sentences(8)
    way = experiment.WAYS["lora 1"]
    model, found = experiment.tuned(way, rows, ONE, 3, 2e-3, 5)
    ((fitted, (tokens, labels, setting, seed), more),) = fits
    assert fitted is model
    assert (tokens, labels) == (rows.tokens, rows.labels)
    assert setting == tuning.Setting(5, 16, 2e-3)
    assert seed == 30_003
    assert more == {}
    # The last half of the steps, and what the course says of a step.
    assert (found["late_loss"], found["seconds"]) == (5.0, 0.25)


def test_all_ways_train_with_the_same_setting_and_order(fits, tiny, sentences, monkeypatch):
    # Nothing takes the steps that an allocator waits for.
    monkeypatch.setattr(adalora.Allocator, "__exit__", lambda *_: None)
    rows = sentences(40)
    for way in experiment.WAYS.values():
        experiment.tuned(way, rows, ONE, 3, 2e-3, 2)
    for _, (tokens, labels, setting, seed), _ in fits:
        assert (tokens, labels) == (rows.tokens, rows.labels)
        assert (setting, seed) == (tuning.Setting(2, 16, 2e-3), 30_003)
    given = [set(more) for *_, more in fits]
    special = {"adalora 4": {"penalty", "after"}, "plus 4": {"optimizer"}}
    assert given == [special.get(name, set()) for name in experiment.WAYS]


def test_plus_trains_b_at_sixteen_times_the_rate_in_every_step(tiny, sentences, monkeypatch):
    seen, fit = [], tuning.fit

    def watched(model, *arguments, optimizer):
        fast = {id(module.B) for module in additions(model, LoRALinear).values()}
        everything = {id(p) for p in model.parameters() if p.requires_grad}

        def build(model, rate):
            made = optimizer(model, rate)
            made.register_step_pre_hook(lambda o, *_: seen.append(rates(o)))
            return made

        def rates(made):
            found = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
            assert set(found) == everything
            return [
                {found[i] for i in fast},
                {found[i] for i in everything - fast},
            ]

        return fit(model, *arguments, optimizer=build)

    monkeypatch.setattr(tuning, "fit", watched)
    experiment.tuned(experiment.WAYS["plus 4"], sentences(40), ONE, 3, 1e-3, 2)
    assert len(seen) == 6
    for step, (fast, rest) in enumerate(seen):
        assert [*rest] == pytest.approx([1e-3 * share(step, 6)], rel=1e-12)
        assert [*fast] == pytest.approx([16e-3 * share(step, 6)], rel=1e-12)


@pytest.mark.parametrize(
    ("n", "epochs", "schedule"),
    [
        # Of the record, and of the short run.
        (1_000, 2, adalora.Schedule(144, 25, 50, 126)),
        (160, 1, adalora.Schedule(144, 2, 4, 10)),
        (40, 2, adalora.Schedule(144, 1, 2, 6)),
        (33, 1, adalora.Schedule(144, 0, 1, 3)),
    ],
)
def test_adaloras_schedule_and_penalty(n, epochs, schedule, fits, tiny, sentences, monkeypatch):
    made = []

    class Noted(adalora.Allocator):
        def __init__(self, model, schedule):
            super().__init__(model, schedule)
            made.append((self, model, schedule))

        def __exit__(self, *_):
            """Nothing took the steps."""

    monkeypatch.setattr(adalora, "Allocator", Noted)
    way = experiment.WAYS["adalora 4"]
    tuned, _ = experiment.tuned(way, sentences(n), ONE, 3, 1e-2, epochs)
    ((allocator, model, found),) = made
    assert model is tuned
    assert found == schedule
    # Six of each of 36 maps at first; two thirds stay.
    assert allocator.first == 36 * 6 == schedule.last * 3 / 2
    ((_, _, more),) = fits
    assert more["after"] == allocator.step
    penalties = []
    for module in additions(model, SVDLinear).values():
        for rows in (module.P.T, module.Q):
            penalties.append(((rows @ rows.T - torch.eye(6)) ** 2).sum().item())
    # At the start near 6, as every row is short: far from 0, so that a lost factor is seen.
    assert len(penalties) == 72
    assert more["penalty"]().item() == pytest.approx(0.1 * fmean(penalties), rel=1e-5)


def test_adalora_keeps_two_thirds_of_its_triplets(tiny, sentences):
    way = experiment.WAYS["adalora 4"]
    model, _ = experiment.tuned(way, sentences(40, 1), ONE, 3, 1e-2, 2)
    left = ranks(model)
    assert len(left) == 36
    assert sum(left.values()) == 144
    # Not the same of all maps.
    assert len(set(left.values())) > 1


# One training


@pytest.mark.parametrize("name", experiment.WAYS)
def test_training_moves_what_trains_and_nothing_else(name, tiny, sentences):
    rows, test = sentences(40, 1), sentences(20, 2)
    start = built(name)[0]
    model, found = experiment.tuned(experiment.WAYS[name], rows, test, 3, 1e-2, 1)
    changed, names = moved(states(start), states(model)), trainable(start)
    assert changed <= names
    # A map may lose all of its triplets, whose E are then as at the start.
    assert all(part.endswith(".E") for part in names - changed)
    assert name == "adalora 4" or changed == names
    assert set(found) == COLUMNS
    assert found["frozen"] == 1.0
    assert found["trainable"] == counts(*TINY)[name]
    assert {key: found[key] for key in ("accuracy", "log_loss", "few")} == experiment.measured(
        model, test
    )
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", experiment.WAYS)
def test_a_frozen_number_that_moves_is_seen(name, tiny):
    parts = [part for part, p in built(name)[0].named_parameters() if not p.requires_grad]
    if name == "vera 256":
        shared = [part for part in parts if part.endswith((".A", ".B"))]
        assert len(shared) == 2
        parts += shared
    for chosen in (parts[0], *parts[-2:]):

        def train(model, *_, chosen=chosen):
            with torch.no_grad():
                model.get_parameter(chosen).view(-1)[-1] += 1e-3
            return COURSE

        way = experiment.WAYS[name]._replace(train=train)
        assert experiment.tuned(way, ONE, ONE, 0, 1e-3, 1)[1]["frozen"] == 0.0


def test_a_seed_is_all_that_a_training_depends_on(tiny, sentences):
    rows, test = sentences(40, 1), sentences(20, 2)

    def tuned(name, seed):
        found = experiment.tuned(experiment.WAYS[name], rows, test, seed, 1e-2, 1)[1]
        return {key: value for key, value in found.items() if key != "seconds"}

    for name in ("adalora 4", "vera 256"):
        first = tuned(name, 0)
        torch.randn(3)
        assert tuned(name, 0) == first
        assert tuned(name, 1) != first


def test_results_compare_seed_by_seed_with_the_other_comparison(fits, tiny, sentences):
    rows, test = sentences(8, 1), sentences(4, 2)
    way = experiment.WAYS["lora 4"]
    ours, _ = experiment.tuned(way, rows, test, 3, 2e-3, 5)
    theirs, _ = review_tuning.tuned("adapters 16", rows, test, 3, 2e-3, 5)
    assert torch.equal(ours.head.weight, theirs.head.weight)
    # The same tokens, labels, settings, and seeds of the order.
    assert fits[0][1] == fits[1][1]


# What is measured


def test_one_pass_measures_what_two_functions_do(tiny, sentences, monkeypatch):
    monkeypatch.setattr(experiment, "FEW", 90)
    model, test = plain(), sentences(210, 3)
    with torch.no_grad():
        model.head.weight.mul_(50)
        # Near a half of the rows is of each class.
        logits = tuning.predicted(model, test.tokens, 32)
        model.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    found = experiment.measured(model, test)
    assert set(found) == {"accuracy", "log_loss", "few"}
    assert found["accuracy"] == tuning.accuracy(model, *test, 32)
    # Ours is computed in float64, that one of each row in float32.
    assert found["log_loss"] == pytest.approx(tuning.log_loss(model, *test, 32), rel=1e-6)
    logits = tuning.predicted(model, test.tokens, 32)
    right = [int(row.argmax() == label) for row, label in zip(logits, test.labels, strict=True)]
    assert found["few"] == pytest.approx(sum(right[:90]) / 90, rel=1e-15)
    # Neither the last ones nor all.
    assert len({sum(right[:90]) / 90, sum(right[-90:]) / 90, sum(right) / 210}) == 3


def test_few_are_the_rows_that_the_other_comparison_truncates_with():
    assert experiment.FEW == review_tuning.FEW == 500


# Directions


def rewritten(name, write):
    """A classifier whose additions a function of their number and module has written anew."""
    model = built(name)[0]
    for i, module in enumerate(additions(model, LoRALinear).values()):
        with torch.no_grad():
            write(i, module)
    return model


def whole_numbers(seed):
    """Fill A and B with whole numbers, whose products float32 knows exactly."""
    drawn = generator(seed)

    def write(_, module):
        for part in (module.A, module.B):
            part.copy_(torch.randint(-3, 4, part.shape, generator=drawn))

    return write


def test_a_change_shares_all_its_directions_with_itself(tiny):
    model = rewritten("lora 4", whole_numbers(5))
    found = experiment.directions(model, model)
    assert set(found) == {"similar", "share", "amplified"}
    assert found["similar"] == pytest.approx([1.0] * 4, abs=1e-12)


def test_directions_by_another_computation(tiny):
    small, large = (rewritten(f"lora {r}", whole_numbers(r)) for r in (4, 16))
    similar, parts, amplified = [], [], []
    pairs = (additions(model, LoRALinear).values() for model in (small, large))
    for one, two in zip(*pairs, strict=True):
        # With the factors 8 / 4 and 8 / 16.
        delta, other = 2 * (one.B @ one.A).detach().double(), (two.B @ two.A).detach().double() / 2
        weight = matrix(one.layer).detach().double()
        u, s, v = torch.linalg.svd(delta)
        inputs = torch.linalg.svd(other)[2][:4]
        cosines = v[:4] @ inputs.T
        similar.append([(cosines[:i] ** 2).sum().item() / i for i in (1, 2, 3, 4)])
        size = s.square().sum().sqrt()
        parts.append((size / weight.square().sum().sqrt()).item())
        seen = u[:, :4].T @ weight @ v[:4].T
        amplified.append((size / seen.square().sum().sqrt()).item())
    found = experiment.directions(small, large)
    assert len(similar) == 12
    # float64, with singular values well apart
    assert found["similar"] == pytest.approx([fmean(x) for x in zip(*similar, strict=True)], 1e-9)
    assert found["share"] == pytest.approx(fmean(parts), rel=1e-9)
    assert found["amplified"] == pytest.approx(fmean(amplified), rel=1e-9)


def test_directions_in_closed_form(tiny):
    def reads(*columns):
        """Read some inputs, with the sizes 4, 3, 2, 1, and write each where it came from."""

        def write(i, module):
            module.A.zero_()
            module.B.zero_()
            for k, column in enumerate(columns):
                module.A[k, column], module.B[column, k] = 4 - k, 1
            matrix(module.layer).copy_((i + 1) * torch.eye(16))

        return write

    small = rewritten("lora 4", reads(0, 1, 2, 3))
    large = rewritten("lora 16", reads(1, 5, 0, 6))
    found = experiment.directions(small, large)
    # The large one reads two of the small one's, its two largest.
    assert found["similar"] == pytest.approx([1, 1, 2 / 3, 1 / 2], abs=1e-12)
    # The change is 2 diag(4, 3, 2, 1), beside i times the unit matrix of 16 rows.
    size, harmonic = 2 * math.sqrt(30), fmean(1 / i for i in range(1, 13))
    assert found["share"] == pytest.approx(size / 4 * harmonic, rel=1e-6)
    assert found["amplified"] == pytest.approx(size / 2 * harmonic, rel=1e-6)


# A run


def test_every_family_has_a_rate():
    assert {way.family for way in experiment.WAYS.values()} == set(experiment.RATES)
    assert all(0 < rate < 1 for rate in experiment.RATES.values())


def test_a_tiny_run_has_all_its_parts(few, monkeypatch):
    models, tuned = {}, experiment.tuned

    def noted(way, *arguments):
        model, measured = tuned(way, *arguments)
        for name in ("lora 4", "lora 16", "adalora 4"):
            if way is experiment.WAYS[name]:
                models.setdefault(name, model)
        return model, measured

    monkeypatch.setattr(experiment, "tuned", noted)
    found = experiment.run(1, experiment.Scale(32, 1))
    assert set(found) == {"short", "ways", "ranks", "directions"}
    assert list(found["ways"]) == list(experiment.WAYS)
    for name, way in found["ways"].items():
        assert set(way) == COLUMNS
        assert way["frozen"] == 1.0
        assert way["trainable"] == counts(*TINY)[name]
    # Every way came to another place.
    assert len({way["log_loss"] for way in found["ways"].values()}) == len(experiment.WAYS)
    assert found["ranks"] == ranks(models["adalora 4"])
    assert sum(found["ranks"].values()) == 144
    assert found["directions"] == experiment.directions(models["lora 4"], models["lora 16"])
    assert len(found["directions"]["similar"]) == 4
    assert set(found["short"]) == set(experiment.RATES)
    assert all(loss > 0 for loss in found["short"].values())


def test_a_run_has_the_rows_and_seeds_of_the_other_comparison(few, tunings, monkeypatch):
    monkeypatch.setattr(review_tuning, "FEW", 90)
    monkeypatch.setattr(review_tuning, "run_short", lambda _: {})
    monkeypatch.setattr(review_tuning, "by_rank", lambda *_: {})
    monkeypatch.setattr(review_tuning, "by_dropped", lambda *_: {})
    monkeypatch.setattr(experiment, "ranks", lambda model: model)
    monkeypatch.setattr(experiment, "directions", lambda *models: models)
    scale = experiment.Scale(32, 5)
    found = experiment.run(7, scale)
    review_tuning.run(7, scale)
    rows = splits.drawn(few.pool, 32, 10_007)
    names = list(experiment.WAYS)
    ours, theirs = tunings[experiment], tunings[review_tuning]
    for name, (way, learnt, test, seed, rate, epochs) in zip(names, ours, strict=False):
        assert way is experiment.WAYS[name]
        assert torch.equal(learnt.tokens.ids, rows.tokens.ids)
        assert torch.equal(learnt.labels, rows.labels)
        assert torch.equal(theirs[0][1].tokens.ids, rows.tokens.ids)
        assert torch.equal(theirs[0][1].labels, rows.labels)
        assert test is theirs[0][2] is few.test
        assert (seed, epochs) == (theirs[0][3], theirs[0][5]) == (7, 5)
        assert rate == experiment.RATES[way.family]
    # Of each tuning its own result.
    assert found["ways"] == {name: {"late_loss": i + 1.0} for i, name in enumerate(names)}
    numbers = {name: f"model {i + 1}" for i, name in enumerate(names)}
    assert found["ranks"] == numbers["adalora 4"]
    assert found["directions"] == (numbers["lora 4"], numbers["lora 16"])
    # Behind them come the six of the short run.
    assert found["short"] == {call[0].family: i + 16.0 for i, call in enumerate(ours[15:])}
    assert len(ours) == 15 + 6


def test_a_run_is_as_large_as_that_of_the_other_comparison():
    assert experiment.run.__defaults__ == review_tuning.run.__defaults__ == ((1_000, 2),)
    assert (experiment.SHORT, experiment.BATCH) == ((160, 1), 16)


def test_a_short_run_is_the_first_way_of_every_family(few, tunings):
    found = experiment.run_short(2)
    assert set(found) == set(experiment.RATES)
    first = ["lora 1", "adalora 4", "dora 4", "pissa 4", "plus 4", "vera 256"]
    rows = splits.drawn(few.pool, 32, 10_002)
    for i, (name, call) in enumerate(zip(first, tunings[experiment], strict=True)):
        way, learnt, test, seed, rate, epochs = call
        assert way is experiment.WAYS[name]
        assert found[way.family] == i + 1
        assert torch.equal(learnt.tokens.ids, rows.tokens.ids)
        assert torch.equal(learnt.labels, rows.labels)
        assert torch.equal(test.tokens.ids, few.test.tokens.ids[:64])
        assert torch.equal(test.labels, few.test.labels[:64])
        assert (seed, rate, epochs) == (2, experiment.RATES[way.family], 1)


def test_the_record_says_what_it_depends_on():
    assert experiment.SEEDS == review_tuning.SEEDS == (0, 1, 2, 3, 4)
    assert experiment.data_digest() == reviews.SHA256["movie"]
