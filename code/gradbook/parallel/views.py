"""Carry out a schedule where every rank can read the others' memory.

Nothing is sent but one byte: READY says that a rank has reached a step and that its chunk may be
read, TAKEN that it has been read. The reader combines the other's chunk with its own where both
lie; there is no copy in between, unless the rank's own chunk is read in the same step.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from gradbook.parallel.calls import BeforeStep, write_
from gradbook.parallel.failures import PeerLate
from gradbook.parallel.plans import Step, Take

READY, TAKEN = b"R", b"T"


class Post(Protocol):
    """Carries bytes between ranks, from each to each in order."""

    def send(self, peer: int, data: bytes, deadline: float) -> None:
        """Send to a rank, `deadline` on `time.monotonic`."""

    def receive(self, left: Mapping[int, int], deadline: float) -> tuple[int, bytes]:
        """Wait for bytes of any rank, of each as many as are left at most.

        TimeoutError after the deadline.
        """


class Tokens:
    """Counts the tokens of each rank that have come.

    Args:
        post: of this rank.
        steps: of this rank; they tell how many tokens each of the others will send. What comes
            after these belongs to the next collective.
        deadline: of the whole collective, on `time.monotonic`.
    """

    def __init__(self, post: Post, steps: Sequence[Step], deadline: float):
        self._post, self._deadline = post, deadline
        self._came = {READY: Counter(), TAKEN: Counter()}
        self._used = Counter()
        self._left = Counter(offer.destination for step in steps for offer in step.offers)
        self._left.update(take.source for step in steps for take in step.takes)

    def send(self, peer: int, token: bytes) -> None:
        """Send a token to a rank."""
        self._post.send(peer, token, self._deadline)

    def await_ready(self, peer: int) -> None:
        """Wait until a rank has offered one chunk more than it was asked for before."""
        self._used[peer] += 1
        self._wait(READY, peer, self._used[peer])

    def await_taken(self, peer: int, count: int) -> None:
        """Wait until a rank has taken so many chunks in all."""
        self._wait(TAKEN, peer, count)

    def _wait(self, token: bytes, peer: int, count: int) -> None:
        # Whatever comes is counted, whoever sends it: a rank that waits here blocks nobody.
        came = self._came[token]
        while came[peer] < count:
            try:
                source, data = self._post.receive(self._left, self._deadline)
            except TimeoutError:
                raise PeerLate(peer) from None
            self._left[source] -= len(data)
            for kind, counter in self._came.items():
                counter[source] += data.count(kind)


def carry_out(
    steps: Sequence[Step],
    rank: int,
    chunks: Sequence[Sequence[Tensor]],
    reduction: str,
    tokens: Tokens,
    before_step: BeforeStep,
) -> int:
    """Do one rank's part of a schedule.

    Args:
        steps: of this rank.
        rank: which it is.
        chunks: of every rank, as views; this rank writes its own only.
        reduction: sum, mean (added up, not yet divided), max or min.
        tokens: new ones.
        before_step: called with rank and step.

    Returns:
        Bytes that other ranks have read.

    Raises:
        PeerLost: if another rank has gone.
        PeerLate: if another rank did not come in time.
    """
    offers, sent = Counter(), 0
    for number, step in enumerate(steps):
        before_step(rank, number)
        for offer in step.offers:
            tokens.send(offer.destination, READY)
            offers[offer.destination] += 1
            sent += chunks[rank][offer.chunk].nbytes
        kept = []
        for take in step.takes:
            tokens.await_ready(take.source)
            theirs = chunks[take.source][take.chunk]
            own = chunks[rank][take.chunk]
            if take.offered:
                kept.append((take, theirs.clone()))
            else:
                _write(take, own, theirs, reduction, tokens)
            tokens.send(take.source, TAKEN)
        for take, theirs in kept:
            own = chunks[rank][take.chunk]
            _write(take, own, theirs, reduction, tokens)
    # The next collective may overwrite everything.
    for peer, count in offers.items():
        tokens.await_taken(peer, count)
    return sent


def _write(take: Take, own: Tensor, theirs: Tensor, reduction: str, tokens: Tokens) -> None:
    for reader, count in take.after:
        tokens.await_taken(reader, count)
    write_(own, theirs, take.op, reduction)


def remaining(deadline: float) -> float:
    """Give the seconds until a deadline on `time.monotonic`; TimeoutError if none are left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def soon(seconds: float) -> float:
    """Give the deadline on `time.monotonic` so many seconds from now."""
    return time.monotonic() + seconds
