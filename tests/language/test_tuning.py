"""Steps against AdamW written out, what is frozen, batches, measures, and penalties."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from gradbook.language import encoder, schedule, tuning
from gradbook.language.tuning import Setting


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_for(count, classes=3, seed=9):
    return torch.randint(0, classes, (count,), generator=generator(seed))


def by_hand(model, tokens, labels, order, rates):
    """AdamW as its paper writes it, with clipping, on a copy of the model; returns the losses."""
    names = {name for name, part in model.named_parameters() if part.requires_grad}
    means = {name: 0.0 for name in names}
    squares = {name: 0.0 for name in names}
    losses = []
    for t, (rows, rate) in enumerate(zip(order, rates, strict=True), 1):
        loss = F.cross_entropy(model(tokens.ids[rows], tokens.mask[rows]), labels[rows])
        losses.append(loss.item())
        parts = {name: part for name, part in model.named_parameters() if name in names}
        gradients = dict(zip(parts, torch.autograd.grad(loss, parts.values()), strict=True))
        norm = sum(g.square().sum() for g in gradients.values()).sqrt()
        with torch.no_grad():
            for name, part in parts.items():
                g = gradients[name] / max(1.0, norm.item() + 1e-6)
                means[name] = 0.9 * means[name] + 0.1 * g
                squares[name] = 0.999 * squares[name] + 0.001 * g.square()
                mean, square = means[name] / (1 - 0.9**t), squares[name] / (1 - 0.999**t)
                vector = name.endswith("bias") or "LayerNorm" in name
                decay = 0.0 if vector else 0.01
                part -= rate * (mean / (square.sqrt() + 1e-8) + decay * part)
    return losses


def test_a_training_is_adamw_written_out(tiny, texts):
    tokens, labels = texts(11), labels_for(11)
    setting = Setting(epochs=3, batch=4, rate=3e-2)
    ours, theirs = tiny(), tiny()
    found = tuning.fit(ours, tokens, labels, setting, seed=6)
    own, order = generator(6), []
    for _ in range(3):
        order += schedule.batches(tokens.mask.sum(1), 4, own)
    rates = [3e-2 * schedule.share(step, 9) for step in range(9)]
    losses = by_hand(theirs, tokens, labels, order, rates)
    assert found.losses == pytest.approx(losses, rel=1e-9)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_a_large_gradient_is_clipped_and_a_small_one_is_not(tiny, texts):
    tokens, labels, rows = texts(6), labels_for(6), torch.arange(6)
    for factor, clipped in ((100.0, True), (1e-3, False)):
        model = tiny()
        with torch.no_grad():
            model.head.weight *= factor
        free = copy.deepcopy(model)
        F.cross_entropy(free(*tokens), labels).backward()
        norm = torch.cat([p.grad.flatten() for p in free.parameters() if p.grad is not None]).norm()
        assert (norm > 1) == clipped
        tuning.step(model, tuning.adamw(model, 1e-3), tokens, labels, rows)
        for a, b in zip(model.parameters(), free.parameters(), strict=True):
            if b.grad is not None:
                scaled = b.grad / norm if clipped else b.grad
                torch.testing.assert_close(a.grad, scaled, rtol=1e-5, atol=1e-12)


def test_a_penalty_adds_its_gradient_and_the_loss_comes_back_without_it(tiny, texts):
    tokens, labels, rows = texts(6), labels_for(6), torch.arange(6)
    models, losses = [tiny(), tiny()], []
    for model in models:
        with torch.no_grad():
            # So small that nothing is clipped.
            model.head.weight *= 1e-3
    plain, with_penalty = models
    losses.append(tuning.step(plain, tuning.adamw(plain, 1e-3), tokens, labels, rows))
    start = with_penalty.head.weight.detach().clone()

    def penalty():
        return 0.5 * with_penalty.head.weight.square().sum()

    optimizer = tuning.adamw(with_penalty, 1e-3)
    losses.append(tuning.step(with_penalty, optimizer, tokens, labels, rows, penalty))
    assert losses[0] == losses[1]
    for (name, a), b in zip(plain.named_parameters(), with_penalty.parameters(), strict=True):
        own = start if name == "head.weight" else 0.0
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad + own, rtol=1e-12, atol=1e-15)


def test_a_training_uses_its_penalty_in_every_step(tiny, texts):
    """Of the numbers as they are: each of the 6 steps calls it anew."""
    model, seen = tiny(), []

    def penalty():
        seen.append(model.head.weight.detach().clone())
        return 1e3 * model.head.weight.square().sum()

    rows, setting = (texts(10), labels_for(10)), Setting(epochs=2, batch=4, rate=1e-2)
    course = tuning.fit(model, *rows, setting, 0, penalty=penalty)
    assert len(seen) == len(course.losses) == 6
    # Adam moves each number by about its step size, towards 0, and the rates add up to 0.035.
    assert (seen[-1].abs().sum() < seen[0].abs().sum()).item()
    assert course.losses[0] == tuning.fit(tiny(), *rows, setting, 0).losses[0]


def test_after_each_step_its_gradients_are_there(tiny, texts):
    model, seen = tiny(), []

    def after():
        norm = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt()
        seen.append((norm.item(), model.head.weight.detach().clone()))

    start = model.head.weight.detach().clone()
    setting = Setting(epochs=2, batch=4, rate=1e-2)
    course = tuning.fit(model, texts(10), labels_for(10), setting, 0, after=after)
    assert len(seen) == len(course.losses) == 6
    assert all(0 < norm < 1 + 1e-6 for norm, _ in seen)
    # The step was taken before: the first look sees other weights than the start, the last the end.
    assert not torch.equal(seen[0][1], start)
    assert torch.equal(seen[-1][1], model.head.weight)


def test_a_training_takes_the_optimizer_it_is_given(tiny, texts):
    """Plain descent of the head: one step is the clipped gradient times the rate."""
    model, free = tiny(), tiny()
    tokens, labels = texts(4), labels_for(4)
    F.cross_entropy(free(*tokens), labels).backward()
    norm = free.head.weight.grad.norm().item()
    made = []

    def optimizer(network, rate):
        made.append((network, rate))
        return torch.optim.SGD([network.head.weight], rate)

    tuning.fit(model, tokens, labels, Setting(1, 4, 0.1), 0, optimizer)
    assert made == [(model, 0.1)]
    step = 0.1 * free.head.weight.grad / max(1.0, norm + 1e-6)
    torch.testing.assert_close(model.head.weight, free.head.weight - step, rtol=1e-9, atol=1e-12)
    assert torch.equal(model.head.bias, free.head.bias)


@pytest.mark.parametrize("end", ["head.weight", "bias"])
def test_frozen_weights_get_no_gradient_and_stay_as_they_are(tiny, texts, end):
    model = tiny()
    trained = {name for name, _ in model.named_parameters() if name.endswith(end)}
    for name, part in model.named_parameters():
        part.requires_grad_(name in trained)
    before = copy.deepcopy(model.state_dict())
    held = [part for group in tuning.adamw(model, 1.0).param_groups for part in group["params"]]
    assert {id(p) for p in held} == {id(p) for n, p in model.named_parameters() if n in trained}
    tuning.fit(model, texts(8), labels_for(8), Setting(epochs=2, batch=4, rate=0.1), 0)
    for name, part in model.named_parameters():
        assert (part.grad is not None) == (name in trained), name
        assert torch.equal(part, before[name]) == (name not in trained), name


def test_every_pass_shows_every_row_once(tiny, texts, monkeypatch):
    seen = []

    def step(model, optimizer, tokens, labels, rows, penalty):
        seen.append(rows)
        return 0.0

    monkeypatch.setattr(tuning, "step", step)
    setting = Setting(epochs=3, batch=4)
    assert len(tuning.fit(tiny(), texts(10), labels_for(10), setting, 0).losses) == 9
    passes = [torch.cat(seen[3 * i : 3 * i + 3]).tolist() for i in range(3)]
    assert [sorted(rows) for rows in passes] == [list(range(10))] * 3
    assert passes[0] != passes[1]


def test_a_seed_repeats_a_training_and_another_does_not(tiny, texts):
    tokens, labels = texts(9), labels_for(9)
    before = torch.get_rng_state()
    courses = [
        tuning.fit(tiny(), tokens, labels, Setting(epochs=1, batch=2), seed) for seed in (1, 1, 2)
    ]
    assert courses[0].losses == courses[1].losses != courses[2].losses
    assert torch.equal(torch.get_rng_state(), before)


def test_separable_texts_are_learned(tiny, texts):
    """A text's first word tells its label, and the other words do not."""

    def rows(count, seed):
        tokens, labels = texts(count, seed), labels_for(count, 2, seed)
        tokens.ids[:, 0] = labels + 1
        return tokens, labels

    train, test = rows(80, 1), rows(60, 2)
    model = tiny(classes=2)
    setting = Setting(epochs=6, batch=10, rate=2e-2)
    course = tuning.fit(model, *train, setting, 0)
    assert course.losses[0] > 0.5
    assert sum(course.losses[-5:]) / 5 < 0.1
    assert tuning.accuracy(model, *test, 7) > 0.95


def test_the_models_mode_is_left_alone(tiny, texts):
    model, rows = tiny(), (texts(6), labels_for(6))
    model.encoder.eval()
    model.head.train()
    tuning.fit(model, *rows, Setting(epochs=1, batch=3), 0)
    assert model.head.training
    assert not any(part.training for part in model.encoder.modules())


def test_logits_come_back_in_the_order_of_the_rows(tiny, texts):
    model, tokens = tiny(), texts(23)
    found = tuning.predicted(model, tokens, 5)
    torch.testing.assert_close(found, model(*tokens).detach(), rtol=0, atol=1e-12)
    assert not found.requires_grad
    assert tuning.predicted(model, texts(0), 5).shape == (0, 3)


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_measures_are_their_definitions(tiny, texts, batch):
    model, tokens, labels = tiny(), texts(23), labels_for(23)
    probabilities = model(*tokens).detach().softmax(1)
    right = [
        row.argmax().item() == y for row, y in zip(probabilities, labels.tolist(), strict=True)
    ]
    assert 0 < sum(right) < 23
    assert tuning.accuracy(model, tokens, labels, batch) == pytest.approx(sum(right) / 23)
    loss = -sum(math.log(row[y]) for row, y in zip(probabilities, labels, strict=True)) / 23
    assert tuning.log_loss(model, tokens, labels, batch) == pytest.approx(loss, rel=1e-10)


def test_a_gradient_that_is_not_finite_ends_the_training(tiny, texts):
    model = tiny()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        tuning.fit(model, texts(4), labels_for(4), Setting(), 0)


def test_a_model_of_any_kind_will_do(texts):
    """Anything that takes ids and a mask, and sees no more of them than the rows need."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(30, 2, dtype=torch.float64)
            self.widths = []

        def forward(self, ids, mask):
            self.widths.append((ids.shape[1], mask.sum(1).max().item()))
            return (self.table(ids) * mask[..., None]).sum(1)

    model = Counting()
    tuning.fit(model, texts(40), labels_for(40, 2), Setting(epochs=1, batch=4), 0)
    assert all(width == longest for width, longest in model.widths)
    assert len({width for width, _ in model.widths}) > 3


def test_bad_input_is_named(tiny, texts):
    model, tokens, labels = tiny(), texts(4), labels_for(4)
    frozen = tiny().requires_grad_(False)

    def fit(network=model, t=tokens, y=labels, **setting):
        return lambda: tuning.fit(network, t, y, Setting(**setting), 0)

    cases = [
        (fit(epochs=0), "epochs: "),
        (fit(batch=0), "batch: "),
        (fit(rate=0.0), "setting: rate"),
        (fit(rate=math.nan), "setting: rate"),
        (fit(rate=math.inf), "setting: rate"),
        (fit(network=frozen), "model: "),
        (fit(t=texts(0), y=labels[:0]), "tokens: "),
        (fit(y=labels[:3]), "labels: must be"),
        (fit(y=labels.double()), "labels: must be"),
        (fit(y=labels - 3), "labels: must not"),
        (fit(y=labels + 3), "labels: must be less than 3"),
        (lambda: tuning.accuracy(model, texts(0), labels[:0], 2), "tokens: "),
        (lambda: tuning.accuracy(model, tokens, labels + 3, 2), "labels: must be less than 3"),
        (lambda: tuning.accuracy(model, tokens, labels, 0), "batch: "),
        (lambda: tuning.log_loss(model, tokens, labels[:3], 2), "labels: "),
        (lambda: tuning.log_loss(model, tokens, labels + 3, 2), "labels: must be less than 3"),
        (lambda: tuning.predicted(model, tokens, 0), "batch: "),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=f"^{message}"):
            call()


def test_the_real_classifier_takes_a_step():
    model = encoder.classifier(2, generator())
    tokens = encoder.encode(["a film without a single idea", "a joy from beginning to end"])
    labels = torch.tensor([0, 1])
    course = tuning.fit(model, tokens, labels, Setting(epochs=3, batch=2, rate=1e-4), 0)
    assert course.losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert course.losses[-1] < 0.8 * course.losses[0]
