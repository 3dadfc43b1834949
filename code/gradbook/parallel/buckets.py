"""Gradients gathered in buckets, each reduced as soon as it is full, during the backward pass.

The backward pass finds the gradients of the last layers first. One all-reduce for each of them would
pay for the start of each; one for all of them would wait for the last. So gradients are put into
*buckets* in the order in which they come, and a full bucket's all-reduce is launched at once. Buckets
are launched in their order: all ranks must call the same collectives in the same order.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from functools import partial

from torch import Tensor, nn

from gradbook.parallel.data_parallel import packed, unpack_
from gradbook.transformer_sizes import require_sizes

Wait = Callable[[], object]  # returns when an all-reduce has ended
Launch = Callable[[Tensor], Wait]  # begins an all-reduce in place


def buckets(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Group what comes one after the other.

    A bucket is closed as soon as it holds as many bytes as the limit, or
    more; only the last one may hold fewer.

    Args:
        sizes: bytes, in the order in which they come.
        limit: bytes, at least 1.

    Returns:
        Positions in ``sizes``, by bucket.

    Raises:
        ValueError: if the limit is no integer of at least 1, or a size is
            below 0.

    Source: S. Li et al., 2020, "PyTorch Distributed: experiences on
    accelerating data parallel training", section 3.2. `DistributedDataParallel`
    closes buckets so; its first one has a smaller limit.
    """
    require_sizes(limit=limit)
    if any(size < 0 for size in sizes):
        raise ValueError(f"sizes: must be at least 0, got {list(sizes)}")
    found, held = [[]], 0
    for position, size in enumerate(sizes):
        if held >= limit:
            found.append([])
            held = 0
        found[-1].append(position)
        held += size
    return found if sizes else []


class Bucketed:
    """Hooks on parameters that reduce their gradients while the backward pass goes on.

    Use it with ``with``; after it the hooks are gone. After every backward pass call `finish`.

    Args:
        parameters: in the order of the forward pass, all of one type and device.
        limit: bytes of a bucket, as for `buckets`.
        launch: begins the all-reduce of a bucket [k] in place, and returns what waits for its end.

    Attributes:
        groups: the parameters' positions by bucket, in the order of launching.

    Raises:
        ValueError: as `buckets` for the limit, or naming a parameter's number if it asks for no
            gradient, or is of another type or device than number 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], limit: int, launch: Launch):
        self._parameters, self._launch = list(parameters), launch
        _require_parameters(self._parameters)
        last = len(self._parameters) - 1
        backwards = [parameter.nbytes for parameter in reversed(self._parameters)]
        self.groups = [[last - i for i in group] for group in buckets(backwards, limit)]
        self._bucket_of = {i: k for k, group in enumerate(self.groups) for i in group}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, i))
            for i, parameter in enumerate(self._parameters)
        ]
        self._begin()

    def __enter__(self) -> "Bucketed":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self) -> None:
        self._missing = [set(group) for group in self.groups]
        self._running: list[tuple[Tensor, Wait]] = []

    def _arrived(self, position: int, _: nn.Parameter) -> None:
        missing = self._missing[self._bucket_of[position]]
        if position not in missing:
            raise RuntimeError("finish: must be called after every backward pass")
        missing.remove(position)
        # A bucket that is full before an earlier one waits for it, so that all ranks agree.
        while len(self._running) < len(self.groups) and not self._missing[len(self._running)]:
            bucket = len(self._running)
            flat = packed(self._parameters[i].grad for i in self.groups[bucket])
            self._running.append((flat, self._launch(flat)))

    def finish(self) -> None:
        """Wait for all buckets, and write the reduced gradients where they belong.

        Raises:
            RuntimeError: if a parameter got no gradient, so that its bucket was never launched.
            Exception: whatever an all-reduce raises.
        """
        lacking, running = sorted(set().union(*self._missing)), self._running
        self._begin()
        if lacking:
            raise RuntimeError(f"parameters: number {lacking[0]} got no gradient")
        for group, (flat, wait) in zip(self.groups, running, strict=True):
            wait()
            unpack_([self._parameters[i].grad for i in group], flat)


def _require_parameters(parameters: Sequence[nn.Parameter]) -> None:
    kinds = [(parameter.dtype, parameter.device) for parameter in parameters]
    for number, (parameter, kind) in enumerate(zip(parameters, kinds, strict=True)):
        if not parameter.requires_grad:
            raise ValueError(f"parameters: number {number} must ask for a gradient")
        if kind != kinds[0]:
            raise ValueError(
                f"parameters: number {number} must be of number 0's type and device, got {kind}"
            )


class InThread:
    """Launches all-reduces in a thread of its own, one after the other.

    Use it with ``with``, which waits for the one that runs, and drops those behind it. After one
    has failed no other is begun.

    Args:
        all_reduce: reduces a tensor in place, and returns when that is done. It needs a timeout of
            its own: nothing here can stop it.
        timeout: seconds that one may take, from when it is waited for.
    """

    def __init__(self, all_reduce: Callable[[Tensor], object], timeout: float):
        self._all_reduce, self._timeout = all_reduce, timeout
        self._executor = futures.ThreadPoolExecutor(1, "all-reduce")
        self._failure: BaseException | None = None

    def __enter__(self) -> "InThread":
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def __call__(self, flat: Tensor) -> Wait:
        """Launch an all-reduce.

        Args:
            flat: [k], reduced in place; must not be touched until it has ended.

        Returns:
            What waits for its end, returns what it returned, and raises what it or one before it
            raised, or TimeoutError.
        """
        return partial(self._wait, self._executor.submit(self._reduce, flat))

    def _reduce(self, flat: Tensor) -> object:
        # The other ranks have not ended the one that failed: they would take the next one for it.
        if self._failure is not None:
            raise self._failure
        try:
            return self._all_reduce(flat)
        except BaseException as error:
            self._failure = error
            raise

    def _wait(self, future: futures.Future) -> object:
        ended, _ = futures.wait([future], self._timeout)
        if not ended:
            raise TimeoutError(f"all-reduce: has not ended after {self._timeout} s of waiting")
        return future.result()
