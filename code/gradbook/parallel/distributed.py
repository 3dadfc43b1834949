"""Carry out a schedule with the point-to-point calls of `torch.distributed`.

gloo works on the CPU, NCCL between GPUs. All transfers of a step are posted together, because NCCL
would otherwise wait in one rank's send for another's receive, while that one is sending, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gradbook.parallel.calls import (
    TIMEOUT,
    BeforeStep,
    Call,
    Ran,
    described,
    fingerprint,
    finish_,
    nothing,
    pieces,
    require_timeout,
    require_world,
    write_,
)
from gradbook.parallel.failures import CollectiveError, PeerLate, PeerLost, report
from gradbook.parallel.plans import Step, plan
from gradbook.parallel.processes import run_processes
from gradbook.parallel.reductions import require_reduction, require_tensor
from gradbook.parallel.schedules import Schedule
from gradbook.parallel.views import remaining, soon
from gradbook.parallel.workers import BLOCK, require_same
from gradbook.parallel.workforce import START


def run_distributed(
    schedule: Schedule,
    tensors: Sequence[Tensor],
    reduction: str = "sum",
    timeout: float = TIMEOUT,
    backend: str = "gloo",
    before_step: BeforeStep = nothing,
) -> Ran:
    """Carry out a schedule with `torch.distributed`, in processes that are started for it.

    Args:
        schedule: of p ranks.
        tensors: p tensors on the CPU, alike; they are not changed.
        reduction: sum, mean, max or min.
        timeout: seconds that the collective may take, once the processes have started.
        backend: "gloo", or "nccl" with a GPU for each rank.
        before_step: called with rank and step at each rank before each step, in its process.

    Returns:
        New tensors on the CPU, one per rank.

    Raises:
        ValueError: if the tensors do not fit the schedule or each other.
        CollectiveError: if a rank fails or does not come in time.
    """
    transport = TorchDistributed(backend)
    return run_processes(schedule, tensors, reduction, timeout, transport, before_step)


@dataclass(frozen=True)
class TorchDistributed:
    """Ranks of a group send each other chunks with `torch.distributed`.

    Attributes:
        backend: "gloo", or "nccl" with a GPU for each rank.
    """

    backend: str = "gloo"

    def join(self, member) -> "DistributedCarrier":
        """Become a rank; called in its process."""
        if not dist.is_available():
            raise RuntimeError("torch.distributed: is not in this build of PyTorch")
        store = dist.FileStore(str(Path(member.meeting) / "store"), member.world_size)
        dist.init_process_group(
            self.backend,
            store=store,
            rank=member.rank,
            world_size=member.world_size,
            timeout=timedelta(seconds=START),  # to meet; what follows has its own
        )
        device = torch.device("cuda", member.rank) if self.backend == "nccl" else "cpu"
        return DistributedCarrier(member.rank, torch.device(device))


@dataclass(frozen=True)
class DistributedCarrier:
    """Carries out a rank's part of schedules with `torch.distributed`.

    Attributes:
        rank: in the process group.
        device: where the backend works.
    """

    rank: int
    device: torch.device

    def carry_out(self, call: Call, deadline: float, before_step: BeforeStep) -> int:
        """Do the rank's part; return the bytes that it sent.

        Raises:
            PeerLost, PeerLate: if another rank fails.
        """
        schedule, tensor, reduction = call
        flat = tensor.view(-1)
        there = flat.to(self.device)
        chunks = pieces(there, schedule.chunks)
        steps = plan(schedule, self.rank)
        sent = carry_out(steps, self.rank, chunks, reduction, deadline, before_step)
        if there is not flat:
            flat.copy_(there)
        return sent

    def close(self) -> None:
        """Leave the process group, unless a function of the rank has done so."""
        if dist.is_initialized():
            dist.destroy_process_group()


def all_reduce(
    schedule: Schedule,
    tensor: Tensor,
    reduction: str = "sum",
    timeout: float = TIMEOUT,
    before_step: BeforeStep = nothing,
) -> int:
    """Take part in a collective of the process group that this process is in.

    Whoever starts the processes, `torchrun` say, has to end the others when one fails. After a
    CollectiveError the process group can only be destroyed: what was begun in it is not done.

    Args:
        schedule: the same at all ranks, of as many as the process group has.
        tensor: the rank's own, contiguous, without gradient, where the backend works. It becomes
            the result.
        reduction: sum, mean, max or min.
        timeout: seconds that it may take, whatever the process group's own.
        before_step: called with rank and step before each step.

    Returns:
        The bytes of the tensor that this rank sent.

    Raises:
        ValueError: if this rank's call cannot be carried out.
        CollectiveError: if another rank calls something else, has gone or does not come.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    _require_fit(Call(schedule, tensor, reduction), rank, size)
    require_timeout(timeout)
    deadline, at = soon(timeout), [0]

    def begin(rank: int, step: int) -> None:
        at[0] = step
        before_step(rank, step)

    try:
        _agree(Call(schedule, tensor, reduction), rank, size, deadline)
        flat = tensor.view(-1)
        chunks, steps = pieces(flat, schedule.chunks), plan(schedule, rank)
        sent = carry_out(steps, rank, chunks, reduction, deadline, begin)
    except (PeerLost, PeerLate) as error:
        said = report(error, rank, at[0])
        raise CollectiveError(said.rank, said.step, said.why) from error
    finish_(flat, reduction, size)
    return sent


def carry_out(
    steps: Sequence[Step],
    rank: int,
    chunks: Sequence[Tensor],
    reduction: str,
    deadline: float,
    before_step: BeforeStep,
) -> int:
    """Do one rank's part of a schedule.

    Args:
        steps: of this rank.
        rank: which it is.
        chunks: of its own tensor, as views.
        reduction: sum, mean (added up, not yet divided), max or min.
        deadline: on `time.monotonic`.
        before_step: called with rank and step.

    Returns:
        Bytes that it sent.

    Raises:
        PeerLost: if another rank has gone.
        PeerLate: if another rank did not come in time.
    """
    sent = 0
    for number, step in enumerate(steps):
        before_step(rank, number)
        out = [(offer.destination, chunks[offer.chunk]) for offer in step.offers]
        # What arrives has room of its own: a chunk may be on its way and written in one step.
        into = [(take, torch.empty_like(chunks[take.chunk])) for take in step.takes]
        posted = [dist.P2POp(dist.isend, chunk, peer) for peer, chunk in out if len(chunk)]
        posted += [dist.P2POp(dist.irecv, chunk, take.source) for take, chunk in into if len(chunk)]
        _complete(posted, deadline)
        for take, received in into:
            write_(chunks[take.chunk], received, take.op, reduction)
        sent += sum(chunk.nbytes for _, chunk in out)
    return sent


def _complete(posted: list, deadline: float) -> None:
    if not posted:
        return
    peer = posted[0].peer
    try:
        works = dist.batch_isend_irecv(posted)
        # NCCL gives one handle for all of them.
        for index, work in enumerate(works):
            peer = posted[index].peer
            work.wait(timedelta(seconds=remaining(deadline)))
    except TimeoutError:
        raise PeerLate(peer) from None
    except RuntimeError as error:
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        raise (PeerLate if late else PeerLost)(peer) from error


def _require_fit(call: Call, rank: int, size: int) -> None:
    require_world(call.schedule, size)
    plan(call.schedule, rank)
    require_tensor(call.tensor, rank, devices=_devices())
    require_reduction(call.reduction, call.tensor.dtype)


def _devices() -> list[str]:
    # The configuration reads "cpu:gloo,cuda:gloo", although gloo does not send from a GPU.
    pairs = (pair.split(":") for pair in dist.get_backend_config().split(","))
    return [device for device, backend in pairs if backend != "gloo" or device == "cpu"]


def _agree(call: Call, rank: int, size: int, deadline: float) -> None:
    # By the same calls as the chunks, so that a rank that does not come is named.
    block = (fingerprint(call, 0) + described(call).encode())[:BLOCK].ljust(BLOCK)
    mine = torch.tensor(list(block), dtype=torch.uint8, device=call.tensor.device)
    blocks = [mine if peer == rank else torch.empty_like(mine) for peer in range(size)]
    others = [peer for peer in range(size) if peer != rank]
    posted = [dist.P2POp(dist.isend, mine, peer) for peer in others]
    posted += [dist.P2POp(dist.irecv, blocks[peer], peer) for peer in others]
    _complete(posted, deadline)
    require_same([bytes(block.tolist()) for block in blocks])
