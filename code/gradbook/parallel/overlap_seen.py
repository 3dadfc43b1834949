"""Shows that all-reduces go on during a backward pass: the pass waits for one of them."""

import threading
from itertools import count

from torch import Tensor, nn

from gradbook.parallel.buckets import Bucketed, InThread, Wait
from gradbook.parallel.schedules import ring
from gradbook.parallel.trainers import Job, backward, losses
from gradbook.parallel.workers import Member


def order_of_overlap(member: Member, job: Job, limit: int) -> list[str]:
    """Stop a backward pass between decoder and encoder until the first bucket has been reduced.

    Were buckets launched after the backward pass, it would wait in vain.

    Args:
        member: this rank.
        job: the same at all ranks; its first batch is used.
        limit: bytes of a bucket, at most those of the decoder.

    Returns:
        What happened, in order: "launched 0", "reduced 0", "encoder" and so on.

    Raises:
        TimeoutError: if the first bucket is not reduced in time.
        Exception: whatever the all-reduce of a bucket raises.
        ValueError: if the first bucket would hold parameters of the encoder, too, or the job is not
            for so many ranks.
    """
    module, witness = losses(member, job), _Witness(member)
    with (
        InThread(witness.reduce, 2 * member.timeout) as witness.launch_in_thread,
        Bucketed(module.parameters(), limit, witness.launch) as bucketed,
        module.model.decoder.register_forward_pre_hook(witness.watch),
    ):
        if min(bucketed.groups[0]) < len(list(module.model.encoder.parameters())):
            raise ValueError(f"limit: must be at most the decoder's bytes, got {limit}")
        backward(module, job.batches[0], job.sizes, member.rank)
        witness.happened.append("backward pass done")
        bucketed.finish()
    return witness.happened


class _Witness:
    """Writes down what happens at a rank, and holds its backward pass up."""

    def __init__(self, member: Member):
        self._member, self._first = member, threading.Event()
        self._launched, self._reduced = count(), count()
        self.happened: list[str] = []
        self.launch_in_thread: InThread | None = None

    def launch(self, flat: Tensor) -> Wait:
        self.happened.append(f"launched {next(self._launched)}")
        return self.launch_in_thread(flat)

    def reduce(self, flat: Tensor) -> None:
        try:
            self._member.run(ring(self._member.world_size), flat, "mean")
            self.happened.append(f"reduced {next(self._reduced)}")
        finally:
            # After an error the backward pass goes on, and `finish` raises what it was.
            self._first.set()

    def watch(self, decoder: nn.Module, codes: tuple[Tensor]) -> None:
        # The gradient of the codes is all that the encoder's part of the pass needs.
        codes[0].register_hook(self.hold)

    def hold(self, gradient: Tensor) -> None:
        if not self._first.wait(self._member.timeout):
            raise TimeoutError("backward pass: the first bucket was not reduced during it")
        if "reduced 0" in self.happened:
            self.happened.append("encoder")
