"""Measure the bytes of tensors that are alive, on any device, and those of a training step.

A tensor is a view of a *storage*, the memory itself; several tensors may share one. The meter looks
at what every operation returns, counts each storage that is new, and takes it off when the last
tensor that uses it is gone: a variable, a gradient, an optimizer's state, or what autograd saved.
It sees what PyTorch's dispatcher sees. Not in it are the memory that a kernel takes and gives back
inside one operation, what an allocator adds by rounding, and tensors that no operation returned, as
the random state that a checkpoint keeps.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Step(NamedTuple):
    """The bytes of a training step.

    Attributes:
        weights: of the parameters, trained or frozen.
        gradients: after the backward pass.
        states: that the optimizer keeps between steps.
        activations: what lives at the end of the forward pass beyond the weights, the states
            and what was there before (inputs, buffers); the loss itself is in it.
        peak: the most that was alive at once.
        peaks: the same within ``"forward"``, ``"backward"`` and ``"step"``.
    """

    weights: int
    gradients: int
    states: int
    activations: int
    peak: int
    peaks: dict[str, int]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that are alive, within a ``with`` block.

    Tensors from before the block do not count until :meth:`watch` names them; what was counted is
    taken off when it dies, also after the block.

    Attributes:
        current: bytes alive now.
        peak: the most so far.
        peaks: the most within each phase.
    """

    def __init__(self, device: torch.device | str | None = None, granule: int = 1) -> None:
        """Start with nothing counted.

        Args:
            device: counts only tensors there; by its type alone if it has no index. By default
                all devices together, the meta device too, whose storages have a size but no
                memory.
            granule: every storage counts as a whole multiple of it. CUDA's allocator rounds to
                512.

        Raises:
            ValueError: if ``granule`` is less than 1.
        """
        if granule < 1:
            raise ValueError(f"granule: must be at least 1, got {granule}")
        super().__init__()
        self.current = 0
        self.peak = 0
        self.peaks: dict[str, int] = {}
        self._device = None if device is None else torch.device(device)
        self._granule = granule
        self._phases: list[str] = []
        # The storages themselves must not be held: they would never die.
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def watch(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that exist already.

        Args:
            tensors: any; what is counted already does not count again.

        Returns:
            The bytes that this added.

        Raises:
            ValueError: if a tensor has no storage of its own, as a sparse one.
        """
        before = self.current
        for tensor in tensors:
            self._count(_storage(tensor))
        self._note_peak()
        return self.current - before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the most that is alive within a ``with`` block.

        Args:
            name: of the phase; a phase may come more than once, and within another.

        Yields:
            Nothing.
        """
        self._phases.append(name)
        self._note_peak()
        try:
            yield
        finally:
            self._phases.remove(name)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it made."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # A view of a tensor from before the block is no new memory.
        given = {id(_storage(one)) for one in _tensors((args, kwargs))}
        if func in _FRESH:
            given = set()
        for tensor in _tensors(result):
            storage = _storage(tensor)
            if id(storage) not in given or id(storage) in self._alive:
                self._count(storage)
        self._note_peak()
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if self._device is not None and not _is_on(storage.device, self._device):
            return
        size = -(-storage.nbytes() // self._granule) * self._granule
        key = id(storage)
        if key in self._alive:
            # A storage can be resized in place.
            reference, known = self._alive[key]
        else:
            reference = weakref.ref(storage, partial(self._forget, key))
            known = 0
        self._alive[key] = reference, size
        self.current += size - known

    def _forget(self, key: int, reference: weakref.ref) -> None:
        self.current -= self._alive.pop(key)[1]

    def _note_peak(self) -> None:
        self.peak = max(self.peak, self.current)
        for name in self._phases:
            self.peaks[name] = max(self.peaks.get(name, 0), self.current)


def training_step_peak(
    model: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
) -> Step:
    """Measure the bytes of a training step, the second from here.

    The first step lets the optimizer make its states. Both steps change
    the model, and gradients from before are dropped.

    Args:
        model: all its parameters count; its buffers and whatever else was
            there before do not.
        loss: computes a scalar of the model; what it makes itself and
            keeps for the backward pass counts among the activations.
        optimizer: of parameters of the model.

    Returns:
        Exact bytes of tensors, the same on every device that runs the
        same operations.

    Raises:
        ValueError: if the loss is not one number with a gradient.
    """
    model.zero_grad()
    _scalar(loss).backward()
    optimizer.step()
    model.zero_grad()
    meter = LiveBytes()
    weights = meter.watch(model.parameters())
    states = meter.watch(_tensors(list(optimizer.state.values())))
    with meter:
        with meter.phase("forward"):
            value = _scalar(loss)
        activations = meter.current - weights - states
        with meter.phase("backward"):
            value.backward()
        with meter.phase("step"):
            optimizer.step()
    gradients = total_bytes(p.grad for p in model.parameters() if p.grad is not None)
    return Step(weights, gradients, states, activations, meter.peak, meter.peaks)


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Add up the bytes of the storages behind tensors.

    Args:
        tensors: any; a storage that several share counts once.

    Returns:
        Bytes.

    Raises:
        ValueError: if a tensor has no storage of its own, as a sparse one.
    """
    return LiveBytes().watch(list(tensors))


# It turns a tensor that was made outside the dispatcher, as by torch.tensor, into one of the graph.
_FRESH = (torch.ops.aten.lift_fresh.default,)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    if tensor.layout != torch.strided:
        raise ValueError(f"tensors: must be strided, got {tensor.layout}")
    return tensor.untyped_storage()


def _is_on(device: torch.device, wanted: torch.device) -> bool:
    return device.type == wanted.type and wanted.index in (None, device.index)


def _scalar(loss: Callable[[], Tensor]) -> Tensor:
    value = loss()
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ValueError("loss: must return one number with a gradient")
    return value
