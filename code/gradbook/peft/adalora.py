"""AdaLoRA: one budget of rank for the whole model, shared out by importance while it trains.

A triplet is what :mod:`gradbook.peft.svd_linear` says. From time to time the least important ones
are switched off, their E set to zero. They are not deleted: the optimizer moves their E again, and
a later turn may keep them.

Source: Q. Zhang, M. Chen, A. Bukharin, N. Karampatziakis, P. He, Y. Cheng, W. Chen and T. Zhao,
2023, "Adaptive budget allocation for parameter-efficient fine-tuning" (AdaLoRA), section 3 and
algorithm 1.
"""

from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from gradbook.peft.svd_linear import SVDLinear, svd_layers
from gradbook.peft.triplets import (
    Average,
    importance,
    kept,
    require_rates,
    sensitivity,
    smoothed,
    triplet_scores,
)
from gradbook.transformer_sizes import require_sizes


class Schedule(NamedTuple):
    """When triplets are switched off, and how many stay; steps count from 1.

    Attributes:
        last: the budget at the end, triplets of the whole model.
        warm_up: steps at the beginning with all triplets.
        final: steps at the end in which the choice stands.
        total: all steps.
        interval: before the final steps, every so many steps triplets are chosen anew.
    """

    last: int
    warm_up: int
    final: int
    total: int
    interval: int = 1


def budget(
    step: int,
    first: int,
    last: int,
    warm_up: int,
    final: int,
    total: int,
) -> int:
    """Count the triplets that may stay at a step: a cubic from first down to last.

    It is exact, in whole numbers; peft rounds before it cuts off, and may give one less where the
    cubic is a whole number. The paper prints ``step - warm_up - final`` above the fraction's line:
    that starts above ``first`` and ends above ``last``. Its code is what stands here.

    Args:
        step: any; up to warm_up it is ``first``, from total - final on ``last``.
        first: triplets of the whole model, positive.
        last: from 0 to first.
        warm_up: steps, from 0.
        final: steps, from 0; warm_up + final is below total.
        total: steps.

    Returns:
        The count.

    Raises:
        ValueError: if one is not an integer in its range.

    Source: Zhang et al. 2023, section 3.3 and equation 12.
    """
    _require_schedule(first, Schedule(last, warm_up, final, total))
    if type(step) is not int:
        raise ValueError(f"step: must be an integer, got {step!r}")
    length = total - final - warm_up
    left = min(max(total - final - step, 0), length)
    return last + (first - last) * left**3 // length**3


class Allocator:
    """Share out the budget of a model's layers of triplets while it trains.

    An allocator that is forgotten leaves a LoRA of the full first rank, and nothing shows it. So
    it works inside ``with`` only, and leaving that complains unless every step was taken::

        with Allocator(model, schedule) as allocator:
            for batch in batches:
                (loss(batch) + weight * orthogonality(model)).backward()
                optimizer.step()
                allocator.step()
                optimizer.zero_grad()

    ``optimizer.register_step_post_hook(lambda *_: allocator.step())`` makes it part of the
    optimizer's step. For each number of P, E and Q two more are kept, its averages.

    Args:
        model: with at least one such layer; all of them share the budget.
        schedule: its ``last`` is at most the sum of the layers' ranks, and its ``final`` at most
            total - 2, as the last choice needs the scores of a step before.
        beta1: as for :func:`gradbook.peft.triplets.smoothed`.
        beta2: as for :func:`gradbook.peft.triplets.smoothed`.

    Attributes:
        first: the budget at the start, the sum of the layers' ranks.
        steps: taken so far.

    Raises:
        ValueError: if the model has no such layer, or an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        beta1: float = 0.85,
        beta2: float = 0.85,
    ):
        self._layers = svd_layers(model)
        self.first, self.steps = sum(len(m.E) for m in self._layers.values()), 0
        _require_schedule(self.first, schedule)
        if schedule.total - schedule.final < 2:
            raise ValueError(f"final: must be at most total - 2, got {schedule}")
        require_rates(beta1=beta1, beta2=beta2)
        self._schedule, self._beta1, self._beta2 = schedule, beta1, beta2
        self._averages = {
            name: [_zero(weight) for weight in _triplets(layer)]
            for name, layer in self._layers.items()
        }
        self._inside, self._kept = False, None

    def __enter__(self) -> Self:
        self._inside = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside = False
        if kind is None and self.steps != self._schedule.total:
            want, got = self._schedule.total, self.steps
            raise RuntimeError(f"Allocator: step must be called {want} times, was {got}")

    def scores(self) -> Tensor:
        """Score all triplets by the averages of now.

        Returns:
            [first], of the layers in the order of the model; on the CPU.
        """
        each = [
            triplet_scores(*(importance(average) for average in averages))
            for averages in self._averages.values()
        ]
        return torch.cat([score.cpu() for score in each])

    @torch.no_grad()
    def step(self) -> int:
        """Update the scores and switch triplets off, after the optimizer's step.

        The gradients of that step must still be there. Scores are updated before step
        total - final, at which the last choice is made by those of the step before, as peft does.

        Returns:
            The budget of this step. More E may be non-zero: triplets are switched off only at each
            multiple of the interval, and from step total - final on.

        Raises:
            RuntimeError: outside ``with``, after the last step, or if a layer is merged or a
                gradient is missing; nothing has changed then.
            ValueError: if scores are not finite when triplets are to be chosen.
        """
        plan, step = self._schedule, self.steps + 1
        self._require_ready()
        choice = plan.total - plan.final
        now = budget(step, self.first, *plan[:4])
        if step < choice:
            self._update()
        due = step < choice and step % plan.interval == 0
        if due or step == choice:
            self._kept = kept(self.scores(), now)
        if due or step >= choice:
            self._switch_off()
        self.steps = step
        return now

    def _update(self) -> None:
        for name, layer in self._layers.items():
            self._averages[name] = [
                smoothed(average, sensitivity(w, w.grad), self._beta1, self._beta2)
                for average, w in zip(self._averages[name], _triplets(layer), strict=True)
            ]

    def _switch_off(self) -> None:
        layers = list(self._layers.values())
        parts = self._kept.split([len(layer.E) for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.E.masked_fill_(~part.to(layer.E.device), 0)

    def _require_ready(self) -> None:
        if not self._inside:
            raise RuntimeError("step: must be called inside with")
        if self.steps == self._schedule.total:
            raise RuntimeError(f"step: all {self.steps} steps were taken")
        for name, layer in self._layers.items():
            if layer.merged:
                raise RuntimeError(f"step: {name} is merged")
            if any(weight.grad is None for weight in _triplets(layer)):
                raise RuntimeError(f"step: {name} has no gradient; call it before zero_grad")


def _triplets(layer: SVDLinear) -> tuple[Tensor, Tensor, Tensor]:
    return layer.P, layer.E, layer.Q


def _zero(weight: Tensor) -> Average:
    kind = torch.promote_types(weight.dtype, torch.float32)
    return Average(*(torch.zeros_like(weight, dtype=kind) for _ in range(2)))


def _require_schedule(first: int, plan: Schedule) -> None:
    require_sizes(first=first, total=plan.total, interval=plan.interval)
    limits = {"last": first, "warm_up": plan.total - 1, "final": plan.total - 1}
    for name, limit in limits.items():
        value = getattr(plan, name)
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"{name}: must be an integer from 0 to {limit}, got {value!r}")
    if plan.warm_up + plan.final >= plan.total:
        raise ValueError(f"total: must exceed warm_up + final, got {plan}")
