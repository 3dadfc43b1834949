"""The training of a VQGAN: one loop for all losses, and checkpoints.

What a step does is passed as functions, by the step from which each is used: the critic may be left
out, then watch, then play. Everything that a training will need again is in its checkpoint, the
order of the images and the states of the generators too: a training that was interrupted ends at
the same numbers, bit for bit, on the same machine.
"""

import copy
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradbook.devices import device
from gradbook.vq_vae import VQVAE
from gradbook.vq_vae_measures import evaluating
from gradbook.vq_vae_training import pace
from gradbook.vqgan import BETAS, Players, Step


class Setting(NamedTuple):
    """The numbers of a training.

    Attributes:
        steps: of the whole training.
        batch: images of a step.
        rate: the autoencoder's, at its highest; see
            :func:`gradbook.vq_vae_training.pace`.
        critic_rate: the critic's, always.
    """

    steps: int
    batch: int
    rate: float
    critic_rate: float


class Course(NamedTuple):
    """What a training showed: measures at points, traces by name, seconds of a step."""

    values: list[Any]
    trace: dict[str, dict[str, list[float]]]
    seconds: float


class Batches:
    """Batches of indices, each pass in a new order, that can be interrupted.

    The batches are those of :func:`gradbook.vae_training.minibatches`.

    Args:
        count: of the images; what is left over of a pass is dropped.
        size: of a batch.
        generator: of the CPU.

    Raises:
        ValueError: if ``size`` is not from 1 to ``count``.
    """

    def __init__(self, count: int, size: int, generator: torch.Generator):
        if not 1 <= size <= count:
            raise ValueError(f"size: must be from 1 to {count}, got {size}")
        self.count, self.size, self.generator = count, size, generator
        self.order, self.place = torch.arange(count, device="cpu"), count

    def next(self) -> Tensor:
        """Take the next batch.

        Returns:
            int64 [size], on the book's device.
        """
        if self.place + self.size > self.count:
            self.order = torch.randperm(self.count, generator=self.generator, device="cpu")
            self.place = 0
        chosen = self.order[self.place : self.place + self.size]
        self.place += self.size
        return chosen.to(device())

    def state_dict(self) -> dict[str, Any]:
        """Copy the order of this pass, the place in it and the generator's state."""
        states = {"order": self.order.clone(), "generator": self.generator.get_state()}
        return {**states, "place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another one was.

        Args:
            state: of :meth:`state_dict`.

        Raises:
            ValueError: if it is of another number of images.
        """
        self.require_own(state)
        self.order, self.place = state["order"].clone(), state["place"]
        self.generator.set_state(state["generator"])

    def require_own(self, state: Mapping[str, Any]) -> None:
        """Raise unless a state is of as many images.

        Args:
            state: of :meth:`state_dict`.

        Raises:
            ValueError: if it is not.
        """
        if len(state["order"]) != self.count:
            raise ValueError(f"state: is of {len(state['order'])} images, not {self.count}")


class Training:
    """A training that goes on step by step.

    Args:
        model: on the book's device, its decoder with a ``last`` layer.
        critic: of images, on the book's device.
        phases: kinds of steps by the first step of each; one is 0. See
            :func:`gradbook.vqgan.against`.
        setting: the numbers.
        count: of the images to train on.
        seed: of their order and, apart from it, of the quantizer's draws.

    Attributes:
        players: the networks and their optimizers.
        step: how many steps were done.

    Raises:
        ValueError: if no phase starts at 0, or the batch is larger than
            the count.
    """

    def __init__(
        self,
        model: VQVAE,
        critic: nn.Module,
        phases: Mapping[int, Step],
        setting: Setting,
        count: int,
        seed: int,
    ):
        if not phases or min(phases) != 0:
            raise ValueError(f"phases: the first must start at 0, got {sorted(phases)}")
        self.phases, self.setting = dict(phases), setting
        self.batches = Batches(count, setting.batch, torch.Generator().manual_seed(seed))
        self.draws = torch.Generator().manual_seed(seed + 20_000)
        optimizers = adam(model, setting.rate), adam(critic, setting.critic_rate)
        self.players = Players(model, critic, *optimizers)
        self.step = 0

    def advance(self, train: Tensor) -> dict[str, float]:
        """Do one step.

        Args:
            train: images, [count, C, H, W].

        Returns:
            What the step's function returns.
        """
        rate = self.setting.rate * pace(self.step, self.setting.steps)
        self.players.optimizer.param_groups[0]["lr"] = rate
        step = self.phases[max(first for first in self.phases if first <= self.step)]
        found = step(self.players, train[self.batches.next()], self.draws)
        self.step += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """Collect all that the next steps depend on; networks' tensors are not copied."""
        players = {name: part.state_dict() for name, part in self.players._asdict().items()}
        state = {"batches": self.batches.state_dict(), "draws": self.draws.get_state()}
        return {"players": players, **state, "step": self.step, "setting": list(self.setting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another training was.

        Args:
            state: of :meth:`state_dict`, of a training with the same
                setting, networks and number of images; the phases may be
                others.

        Raises:
            ValueError: if the setting or the number of images is another;
                the training is as it was then.
            RuntimeError: of torch, if the networks are others. The order of
                the batches, the draws and the step are as they were then,
                but the networks have taken what fitted.
        """
        if state["setting"] != list(self.setting):
            raise ValueError(f"state: is of {state['setting']}, not {list(self.setting)}")
        self.batches.require_own(state["batches"])
        for name, part in self.players._asdict().items():
            # An optimizer would go on writing into the tensors that it is given.
            part.load_state_dict(copy.deepcopy(state["players"][name]))
        self.batches.load_state_dict(state["batches"])
        self.draws.set_state(state["draws"])
        self.step = state["step"]


def adam(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Make the optimizer of a player, with the betas of the paper.

    Args:
        network: what needs no gradient in it is not trained.
        rate: the step size.

    Returns:
        Adam.
    """
    return torch.optim.Adam(network.parameters(), lr=rate, betas=BETAS)


def save(training: Training, path: Path) -> None:
    """Write a checkpoint; an older one stays until the new one is whole.

    Args:
        training: left as it is.
        path: of the file.
    """
    part = path.with_name(path.name + ".part")
    torch.save(training.state_dict(), part)
    os.replace(part, path)


def load(training: Training, path: Path) -> None:
    """Read a checkpoint into a training.

    It was made with the same setting, networks and number of images; the
    phases may be others. Only tensors, numbers and containers are read: a file can run no code.

    Args:
        training: changed in place.
        path: of the file.

    Raises:
        ValueError: as :meth:`Training.load_state_dict`.
        RuntimeError: as there.
    """
    training.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def fit(
    training: Training,
    train: Tensor,
    until: int,
    points: Collection[int] = (),
    measure: Callable[[VQVAE], Any] = lambda model: None,
    every: int = 10,
) -> Course:
    """Go on with a training, and measure it on the way.

    Args:
        training: changed in place.
        train: images, [n, C, H, W].
        until: how many steps shall be done, counted from the start.
        points: after how many steps to measure, none before the steps
            that are done.
        measure: of a model, which is in evaluation mode meanwhile.
        every: a step in so many is traced.

    Returns:
        The measures; of what the steps return, by name, ``steps`` (how
        many came before) and ``values``; the mean seconds of a step.

    Raises:
        ValueError: if a point is not from the steps done to ``until``, or
            that is more than the setting's steps.
    """
    first, most = training.step, training.setting.steps
    if not first <= until <= most:
        raise ValueError(f"until: must be from {first} to {most}, got {until}")
    if any(not first <= point <= until for point in points):
        raise ValueError(f"points: must be from {first} to {until}, got {sorted(points)}")
    model, values, trace, seconds = training.players.model, [], {}, 0.0
    for point in sorted({*points, until}):
        start = time.perf_counter()
        while training.step < point:
            step, found = training.step, training.advance(train)
            if step % every == 0:
                _trace(trace, step, found)
        seconds += time.perf_counter() - start
        if point in points:
            with evaluating(model):
                values.append(measure(model))
    return Course(values, trace, seconds / max(until - first, 1))


def _trace(trace: dict[str, dict[str, list[float]]], step: int, found: Mapping[str, float]) -> None:
    for name, value in found.items():
        column = trace.setdefault(name, {"steps": [], "values": []})
        column["steps"].append(step)
        column["values"].append(value)
