"""AdaLoRA's budget and allocator: peft's masks, a scalar replay, planted ranks, and loud failures."""

import math
from fractions import Fraction

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradbook.peft.adalora import Allocator, Schedule, budget
from gradbook.peft.svd_linear import SVDLinear, orthogonality, ranks

SIDES = [(5, 4), (3, 6), (4, 4)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, draws):
    return torch.randn(shape, generator=draws, dtype=torch.float64)


def layers(rank=3, sides=SIDES, kind=torch.float64):
    draws = generator(1)
    made = [SVDLinear(nn.Linear(*side, dtype=kind), rank, 1.0, draws) for side in sides]
    return nn.ModuleList(made)


def give_gradients(model, draws):
    """Stand for a backward pass and an optimizer's step: random gradients and small moves."""
    for module in model:
        for weight in (module.P, module.E, module.Q):
            weight.grad = normal(*weight.shape, draws=draws).to(weight)
            weight.data += 0.1 * normal(*weight.shape, draws=draws).to(weight)


def trained(model, plan, steps):
    draws = generator()
    with Allocator(model, plan) as allocator:
        for _ in range(steps):
            give_gradients(model, draws)
            allocator.step()


@st.composite
def schedules(draw, first=9, longest=40):
    total = draw(st.integers(2, longest))
    warm_up = draw(st.integers(0, total - 1))
    final = draw(st.integers(0, min(total - 1 - warm_up, total - 2)))
    last, interval = draw(st.integers(0, first)), draw(st.integers(1, 5))
    return Schedule(last, warm_up, final, total, interval)


# The budget.


@given(schedules(first=50), st.integers(-5, 50))
def test_the_budget_is_the_cubic_in_exact_fractions(plan, step):
    first, last, warm_up, final, total, _ = 50, *plan
    fraction = Fraction(step - warm_up, total - final - warm_up)
    fraction = min(max(fraction, 0), 1)
    exact = last + (first - last) * (1 - fraction) ** 3
    assert budget(step, first, *plan[:4]) == math.floor(exact)


def test_the_budget_in_small_numbers():
    # 8 + 8 (left / 4)^3 with 4, 4, 3, 2, 1, 0, 0 steps left.
    found = [budget(step, 16, 8, 1, 2, 7) for step in range(8)]
    assert found == [16, 16, 11, 9, 8, 8, 8, 8]
    assert [budget(step, 6, 6, 1, 2, 7) for step in range(8)] == [6] * 8


def librarys_budget(step, first, last, warm_up, final, total):
    config = peft.AdaLoraConfig(tinit=warm_up, tfinal=final, total_step=total)
    allocator = object.__new__(peft.tuners.adalora.RankAllocator)
    allocator.peft_config, allocator.init_bgt, allocator.target_bgt = config, first, last
    return allocator.budget_schedule(step)[0]


@pytest.mark.parametrize(
    "plan", [(288, 192, 100, 100, 1000), (144, 96, 0, 50, 300), (18, 7, 20, 50, 200)]
)
def test_the_budget_is_pefts(plan):
    total = plan[-1]
    for step in range(total + 2):
        assert budget(step, *plan) == librarys_budget(step, *plan)


def test_peft_loses_one_where_the_cubic_is_a_whole_number():
    # 125 (3 / 5)^3 is 27.
    plan = (2, 125, 0, 0, 0, 5)
    assert budget(*plan) == 27
    assert librarys_budget(*plan) == 26


def test_the_formula_as_printed_starts_above_the_first_budget_and_ends_above_the_last():
    first, last, warm_up, final, total = 288, 192, 100, 100, 1000

    def printed(step):
        part = (step - warm_up - final) / (total - warm_up - final)
        return last + (first - last) * (1 - part) ** 3

    assert printed(warm_up) == pytest.approx(last + 96 * (9 / 8) ** 3)
    assert printed(warm_up) > 328 > first
    assert printed(total - final) == pytest.approx(last + 96 / 8**3)
    assert budget(warm_up, first, last, warm_up, final, total) == first
    assert budget(total - final, first, last, warm_up, final, total) == last


# What the allocator does, against peft and against plain numbers.


def librarys(rank, plan, target):
    """A model by peft with the layers of :func:`layers`, and its layers."""
    config = peft.AdaLoraConfig(
        target_modules=["0", "1", "2"],
        init_r=rank,
        target_r=target,
        tinit=plan.warm_up,
        tfinal=plan.final,
        deltaT=plan.interval,
        total_step=plan.total,
    )
    base = nn.Sequential(*(nn.Linear(*side) for side in SIDES))
    model = peft.get_peft_model(base, config).double()
    return model, [m for m in model.modules() if isinstance(m, peft.tuners.adalora.SVDLinear)]


def copied(module, inner):
    """Give a layer of peft our weights and gradients."""
    pairs = [(inner.lora_B, module.P), (inner.lora_E, module.E), (inner.lora_A, module.Q)]
    for theirs, ours in pairs:
        weight = theirs["default"]
        weight.data = ours.data.reshape(weight.shape).clone()
        weight.grad = ours.grad.reshape(weight.shape).clone()


@pytest.mark.parametrize("plan", [(0, 0, 1), (10, 20, 1), (10, 20, 7), (3, 0, 200), (0, 98, 1)])
def test_masks_are_pefts_over_100_steps(plan):
    warm_up, final, interval = plan
    plan = Schedule(3, warm_up, final, 100, interval)
    ours, draws = layers(3), generator(2)
    theirs, inner = librarys(3, plan, 1)
    seen = set()
    with Allocator(ours, plan) as allocator:
        for step in range(1, 101):
            give_gradients(ours, draws)
            for module, layer in zip(ours, inner, strict=True):
                copied(module, layer)
            now = allocator.step()
            theirs.base_model.update_and_allocate(step)
            if step < 100 - final:
                assert now == theirs.base_model.rankallocator.budget_schedule(step)[0]
            for module, layer in zip(ours, inner, strict=True):
                assert torch.equal(module.E, layer.lora_E["default"].flatten())
            seen.add(sum(ranks(ours).values()))
    assert sum(ranks(ours).values()) == 3
    assert min(seen) == 3
    # Every step drops some, unless it is of the warm-up or not of the interval.
    assert (max(seen) == 9) == (warm_up > 0 or interval > 1)


class Replay:
    """The allocator in plain numbers: a list of triplets, each a list of (w, g, average, spread)."""

    def __init__(self, model, plan, beta1, beta2):
        self.plan, self.rates = plan, (beta1, beta2)
        self.state = [[{}, {}, {}] for module in model for _ in module.E]
        self.keep = None

    def step(self, step, numbers):
        """Of each triplet (column of P, [E], row of Q), all (w, g); gives what is masked or None."""
        choice = self.plan.total - self.plan.final
        if step < choice:
            for state, triplet in zip(self.state, numbers, strict=True):
                self.update(state, triplet)
        due = self.plan.warm_up < step < choice and step % self.plan.interval == 0
        if due or step == choice:
            scores = [self.score(state) for state in self.state]
            count = budget(step, len(scores), *self.plan[:4])
            order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
            self.keep = [i in order[:count] for i in range(len(scores))]
        return self.keep if due or step >= choice else None

    def update(self, state, triplet):
        for table, weights in zip(state, triplet, strict=True):
            for i, (w, g) in enumerate(weights):
                average, spread = table.get(i, (0.0, 0.0))
                now = abs(w * g)
                average += (1 - self.rates[0]) * (now - average)
                spread += (1 - self.rates[1]) * (abs(now - average) - spread)
                table[i] = average, spread

    @staticmethod
    def score(state):
        parts = [[a * s for a, s in table.values()] for table in state]
        return sum(sum(part) / len(part) for part in parts if part)


def as_numbers(model):
    found = []
    for module in model:
        for i in range(len(module.E)):
            cells = [(module.P, (slice(None), i)), (module.E, (slice(i, i + 1),)), (module.Q, (i,))]
            found.append(
                [list(zip(w.data[c].tolist(), w.grad[c].tolist(), strict=True)) for w, c in cells]
            )
    return found


@settings(max_examples=15, deadline=None)
@given(schedules(first=6, longest=20), st.floats(0.2, 0.9), st.floats(0.2, 0.9), st.integers(0, 99))
def test_the_whole_schedule_is_that_of_plain_numbers(plan, beta1, beta2, seed):
    model, draws = layers(2), generator(seed)
    replay = Replay(model, plan, beta1, beta2)
    with Allocator(model, plan, beta1, beta2) as allocator:
        for step in range(1, plan.total + 1):
            give_gradients(model, draws)
            numbers = as_numbers(model)
            expected = torch.cat([module.E.data for module in model]).tolist()
            assert allocator.step() == budget(step, 6, *plan[:4])
            keep = replay.step(step, numbers)
            if keep is not None:
                expected = [e if stays else 0.0 for e, stays in zip(expected, keep, strict=True)]
            assert torch.cat([module.E.data for module in model]).tolist() == expected
            scores = [replay.score(state) for state in replay.state]
            # The products are differences of like numbers, of a size below 1.
            assert allocator.scores().tolist() == pytest.approx(scores, rel=1e-9, abs=1e-15)
    assert sum(ranks(model).values()) == plan.last


def test_masked_triplets_move_again_between_choices_and_not_at_the_end():
    model, draws, found = layers(2), generator(), []
    with Allocator(model, Schedule(2, 0, 4, 12, 4)) as allocator:
        for _ in range(12):
            give_gradients(model, draws)
            allocator.step()
            found.append(sum(ranks(model).values()))
    # Step 4 keeps int(2 + 4 / 8) = 2 and step 8 is the last choice.
    assert found == [6, 6, 6, 2, 6, 6, 6, 2, 2, 2, 2, 2]


def test_a_budget_of_all_or_nothing():
    for last in (0, 6):
        model = layers(2)
        trained(model, Schedule(last, 1, 1, 5), 5)
        assert sum(ranks(model).values()) == last


def test_equal_scores_leave_exactly_the_budget():
    model = layers(2)
    with Allocator(model, Schedule(4, 0, 0, 3)) as allocator:
        for _ in range(3):
            for module in model:
                for weight in (module.P, module.E, module.Q):
                    weight.data.fill_(1)
                    weight.grad = torch.ones_like(weight)
            allocator.step()
    assert ranks(model) == {"0": 2, "1": 2, "2": 0}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_small_gradients_of_half_precision_are_still_told_apart(kind):
    model, draws = layers(2, kind=kind), generator()
    with Allocator(model, Schedule(2, 0, 0, 3)) as allocator:
        for _ in range(3):
            give_gradients(model, draws)
            for module in model:
                for weight in (module.P, module.E, module.Q):
                    weight.grad *= 1e-4
            allocator.step()
    assert sum(ranks(model).values()) == 2
    assert (allocator.scores() > 0).all()


def test_a_shared_layer_counts_once_and_other_weights_do_not_matter():
    shared = layers(2)[0]
    model = nn.ModuleDict({"a": shared, "other": nn.Linear(2, 2), "b": shared})
    assert Allocator(model, Schedule(1, 0, 0, 2)).first == 2


def test_a_default_device_changes_nothing():
    model, draws = layers(2), generator()
    give_gradients(model, draws)
    with torch.device("meta"), Allocator(model, Schedule(4, 0, 0, 2)) as allocator:
        allocator.step()
        allocator.step()
    assert sum(ranks(model).values()) == 4


# Planted ranks.


def planted(rank, seed):
    """A matrix of a rank, 12 by 12, with singular values from 2 down to 1."""
    draws = generator(seed)
    u, v = (torch.linalg.qr(normal(12, 12, draws=draws))[0][:, :rank] for _ in range(2))
    return u * torch.linspace(2, 1, rank, dtype=torch.float64) @ v.T


@pytest.mark.parametrize("seed", range(3))
def test_planted_ranks_are_found_across_layers(seed):
    targets = [planted(rank, 10 * seed + i) for i, rank in enumerate((5, 2, 0))]
    draws = generator(seed)
    model = nn.ModuleList(SVDLinear(nn.Linear(12, 12), 6, 6.0, draws).double() for _ in targets)
    weights = [w for module in model for w in (module.P, module.E, module.Q)]
    optimizer = torch.optim.Adam(weights, 0.02)
    with Allocator(model, Schedule(7, 20, 50, 200, 5)) as allocator:
        for _ in range(200):
            gaps = [target - m.delta() for target, m in zip(targets, model, strict=True)]
            fit = sum(gap.square().sum() for gap in gaps)
            optimizer.zero_grad()
            (fit + 0.1 * orthogonality(model)).backward()
            optimizer.step()
            allocator.step()
    assert list(ranks(model).values()) == [5, 2, 0]
    # Of the squares, 16.875 in all, the best of ranks 3, 2 and 2 would leave 1.25^2 + 1.
    assert fit < 0.02


# Failures.


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_leaving_too_early_is_an_error_and_so_is_forgetting(steps):
    message = f"^Allocator: step must be called 3 times, was {steps}$"
    with pytest.raises(RuntimeError, match=message):
        trained(layers(), Schedule(3, 0, 0, 3), steps)


def test_an_error_inside_is_not_hidden():
    with pytest.raises(KeyError, match="mine"), Allocator(layers(), PLAN):
        raise KeyError("mine")


def test_steps_outside_or_beyond_the_last_are_refused():
    model, draws = layers(), generator()
    give_gradients(model, draws)
    allocator = Allocator(model, Schedule(3, 0, 0, 2))
    with pytest.raises(RuntimeError, match=r"^step: must be called inside"):
        allocator.step()
    with allocator:
        allocator.step()
        allocator.step()
        with pytest.raises(RuntimeError, match=r"^step: all 2 steps"):
            allocator.step()
    with pytest.raises(RuntimeError, match=r"^step: must be called inside"):
        allocator.step()


def test_a_merged_layer_is_refused_and_changes_nothing():
    model = layers()
    give_gradients(model, generator())
    model[1].merge()
    before = [module.E.data.clone() for module in model]
    with Allocator(model, Schedule(3, 0, 0, 2)) as allocator:
        with pytest.raises(RuntimeError, match=r"^step: 1 is merged"):
            allocator.step()
        assert allocator.steps == 0
        assert all(torch.equal(m.E, e) for m, e in zip(model, before, strict=True))
        model[1].unmerge()
        allocator.step()
        allocator.step()


@pytest.mark.parametrize("which", ["P", "E", "Q"])
def test_a_missing_gradient_is_refused_and_changes_nothing(which):
    model, draws = layers(), generator()
    allocator = Allocator(model, Schedule(3, 0, 0, 2))
    give_gradients(model, draws)
    weight = getattr(model[1], which)
    gradient, weight.grad = weight.grad, None
    before = [module.E.data.clone() for module in model]
    with allocator:
        with pytest.raises(RuntimeError, match=r"^step: 1 has no gradient"):
            allocator.step()
        assert allocator.steps == 0
        assert all(torch.equal(m.E, e) for m, e in zip(model, before, strict=True))
        assert (allocator.scores() == 0).all()
        weight.grad = gradient
        allocator.step()
        allocator.step()


def test_a_gradient_that_is_not_finite_is_refused_at_the_next_choice():
    model, draws = layers(), generator()
    give_gradients(model, draws)
    model[0].P.grad[0, 0] = math.nan
    allocator = Allocator(model, Schedule(3, 0, 0, 2))
    with pytest.raises(ValueError, match=r"^scores: must be finite"), allocator:
        allocator.step()


def test_the_step_can_be_made_part_of_the_optimizers():
    model, draws = layers(), generator()
    weights = [w for m in model for w in (m.P, m.E, m.Q)]
    optimizer = torch.optim.SGD(weights, 0.1)
    with Allocator(model, Schedule(3, 0, 0, 4)) as allocator:
        optimizer.register_step_post_hook(lambda *_: allocator.step())
        for _ in range(4):
            give_gradients(model, draws)
            optimizer.step()
    assert sum(ranks(model).values()) == 3


PLAN = Schedule(3, 1, 1, 5)
BAD = [
    (lambda: Allocator(nn.Linear(2, 2), PLAN), "model: "),
    (lambda: Allocator(layers(), PLAN, beta1=0.0), "beta1: "),
    (lambda: Allocator(layers(), PLAN, beta2=1.0), "beta2: "),
    (lambda: Allocator(layers(), PLAN._replace(last=10)), "last: "),
    (lambda: Allocator(layers(), PLAN._replace(last=-1)), "last: "),
    (lambda: Allocator(layers(), PLAN._replace(last=3.0)), "last: "),
    (lambda: Allocator(layers(), PLAN._replace(warm_up=-1)), "warm_up: "),
    (lambda: Allocator(layers(), PLAN._replace(warm_up=4)), "total: "),
    (lambda: Allocator(layers(), PLAN._replace(final=-1)), "final: "),
    (lambda: Allocator(layers(), PLAN._replace(final=5)), "final: "),
    (lambda: Allocator(layers(), Schedule(3, 0, 4, 5)), "final: must be at most total - 2"),
    (lambda: Allocator(layers(), PLAN._replace(total=0)), "total: "),
    (lambda: Allocator(layers(), PLAN._replace(interval=0)), "interval: "),
    (lambda: budget(1.0, 4, 2, 0, 0, 5), "step: "),
    (lambda: budget(1, 0, 0, 0, 0, 5), "first: "),
    (lambda: budget(1, 4, 5, 0, 0, 5), "last: "),
    (lambda: budget(1, 4, 2, 2, 3, 5), "total: "),
    (lambda: budget(1, 4, 2, 5, 0, 5), "warm_up: "),
    (lambda: budget(1, 4, 2, 0, True, 5), "final: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
