"""Groups, ratios of step sizes over a schedule, and what a training does at which step."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from tqdm import tqdm

from gradbook.language import descent, schedule
from gradbook.language.descent import Setting


def parts(*shapes):
    """A model with parameters of these shapes, all ones."""
    made = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in shapes]
    return nn.ParameterList(made)


def lengths(count=10):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 30, (count,), generator=generator)


def sgd(model, rate):
    return torch.optim.SGD(model.parameters(), rate)


def test_matrices_decay_and_vectors_do_not():
    model = parts((2, 3), (3,), (1, 1), (2, 2), ())
    model[3].requires_grad_(False)
    for groups in (descent.groups(model, 0.25), descent.adamw(model, 0.25).param_groups):
        found = [([id(p) for p in g["params"]], g["lr"], g["weight_decay"]) for g in groups]
        assert found == [
            ([id(model[0]), id(model[2])], 0.25, descent.DECAY),
            ([id(model[1]), id(model[4])], 0.25, 0.0),
        ]
    assert descent.DECAY == 0.01
    assert len(descent.groups(parts((3,)), 1.0)) == len(descent.groups(parts((3, 1)), 1.0)) == 1


def test_step_sizes_keep_their_ratios_over_a_schedule():
    model = parts((2, 2), (3,), (1,))
    one, two, three = model
    optimizer = torch.optim.SGD(
        [{"params": [one]}, {"params": [two], "lr": 0.8}, {"params": [three], "lr": 0.0}], 0.05
    )
    seen = []

    def step(rows):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return 0.0

    descent.run(step, optimizer, lengths(), Setting(3, 4, 0.05), 0)
    shares = [schedule.share(i, 9) for i in range(9)]
    expected = [[0.05 * share, 0.8 * share, 0.0] for share in shares]
    for found, wanted in zip(seen, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)
    # Without ratios nothing is multiplied in: the numbers are the schedule's to the bit.
    assert [row[0] for row in seen] == [row[0] for row in expected]


def test_a_second_run_has_the_rates_of_the_first_also_after_an_error():
    model = parts((2,), (1,))
    optimizer = torch.optim.SGD([{"params": [model[0]]}, {"params": [model[1]], "lr": 0.8}], 0.05)
    seen = []

    def step(rows):
        seen.append([group["lr"] for group in optimizer.param_groups])
        if len(seen) == 6:
            raise KeyError("mine")
        return 0.0

    def run():
        return descent.run(step, optimizer, lengths(), Setting(1, 4, 0.05), 0)

    run()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.8]
    with pytest.raises(KeyError, match="mine"):
        run()
    run()
    assert seen[:3] == seen[3:6] == seen[6:]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="^lengths: must have a row"):
        descent.run(lambda _: 0.0, sgd(parts((1,)), 1.0), lengths(0), Setting(), 0)


def test_a_rate_is_that_of_groups_without_a_ratio():
    optimizer = sgd(parts((1,)), 3.0)
    descent.scale(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] == 0.125
    optimizer.param_groups[0]["ratio"] = 16.0
    descent.scale(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_every_pass_shows_every_row_once_in_an_order_of_the_seed():
    orders = []
    for seed in (6, 6, 7):
        seen = []
        course = descent.run(
            lambda rows, seen=seen: seen.append(rows.tolist()) or float(len(seen)),
            sgd(parts((1,)), 1.0),
            lengths(),
            Setting(3, 4, 1.0),
            seed,
        )
        assert course.losses == [float(i + 1) for i in range(9)]
        for i in range(3):
            assert sorted(sum(seen[3 * i : 3 * i + 3], [])) == list(range(10))
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]
    generator = torch.Generator().manual_seed(6)
    expected = [x.tolist() for _ in range(3) for x in schedule.batches(lengths(), 4, generator)]
    assert orders[0] == expected


def test_what_comes_after_comes_once_after_each_step():
    seen = []

    def step(rows):
        seen.append("step")
        return 0.0

    setting = Setting(2, 4, 1.0)
    descent.run(step, sgd(parts((1,)), 1.0), lengths(), setting, 0, lambda: seen.append("after"))
    assert seen == ["step", "after"] * 6


def test_a_step_goes_down_the_loss_and_the_penalty_clipped_together():
    """Slopes (3, 0) and (0, 4), whose sum is clipped to (0.6, 0.8)."""
    weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    loss = 7 + 3 * weights[0]
    optimizer = torch.optim.SGD([weights], 0.5)
    assert descent.descend(optimizer, loss, lambda: 5 + 4 * weights[1]) == 7
    # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
    slope = torch.tensor([0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(weights.grad, slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights.detach(), -0.5 * slope, rtol=1e-6, atol=0)
    before = weights.detach().clone()
    assert descent.descend(optimizer, 0.25 * weights.sum()) == pytest.approx(-0.175, rel=1e-6)
    assert weights.grad.tolist() == [0.25, 0.25]
    assert torch.equal(weights.detach(), before - 0.125)


def test_seconds_are_those_of_a_step_and_of_what_comes_after_it(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def wait(seconds):
        clock.now += seconds
        return 0.0

    monkeypatch.setattr(descent, "time", clock)
    setting, optimizer = Setting(2, 4, 1.0), sgd(parts((1,)), 1.0)
    course = descent.run(lambda _: wait(2), optimizer, lengths(), setting, 0, lambda: wait(1))
    assert course.seconds == 3


def test_a_bar_counts_the_steps_and_goes(monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **settings):
            self.asked = settings
            super().__init__(**settings | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(descent, "tqdm", Bar)
    descent.run(lambda _: 0.0, sgd(parts((1,)), 1.0), lengths(7), Setting(2, 3, 1.0), 0)
    (bar,) = bars
    assert (bar.total, bar.n) == (6, 6)
    assert bar.asked["disable"] is None
    assert bar.asked["leave"] is False


BAD = [
    (Setting(epochs=0), "epochs: "),
    (Setting(epochs=1.0), "epochs: "),
    (Setting(batch=0), "batch: "),
    (Setting(rate=0.0), "setting: rate"),
    (Setting(rate=math.nan), "setting: rate"),
    (Setting(rate=math.inf), "setting: rate"),
]


@pytest.mark.parametrize(("setting", "message"), BAD)
def test_a_bad_setting_is_named(setting, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        descent.run(lambda _: 0.0, sgd(parts((1,)), 1.0), lengths(), setting, 0)


def test_what_cannot_train_is_refused():
    frozen = parts((2, 2), (2,)).requires_grad_(False)
    for call in (descent.groups, descent.adamw):
        with pytest.raises(ValueError, match="^model: must have a parameter"):
            call(frozen, 1.0)
    weights = nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError, match="non-finite"):
        descent.descend(sgd(nn.ParameterList([weights]), 1.0), weights.sum() / 0)
