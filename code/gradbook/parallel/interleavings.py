"""All orders in which the steps of several threads can follow one another.

A program is a list of steps ``(what, lock)``. All programs work on one counter that starts at 0:
``read`` copies it into the thread's own register, ``write`` puts register + 1 into it; ``acquire``
and ``release`` take a lock, which one thread at a time can hold, and give it back.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from gradbook.transformer_sizes import require_sizes

READ, WRITE = ("read", ""), ("write", "")
Step = tuple[str, str]
Program = tuple[Step, ...]


def increments(times: int) -> Program:
    """Add one to the counter some times, without a lock.

    Args:
        times: how often.

    Returns:
        The program.

    Raises:
        ValueError: if times is less than 1.
    """
    require_sizes(times=times)
    return (READ, WRITE) * times


def locked(times: int, lock: str = "a") -> Program:
    """Add one to the counter some times, each time holding a lock.

    Args:
        times: how often.
        lock: its name.

    Returns:
        The program.

    Raises:
        ValueError: if times is less than 1.
    """
    require_sizes(times=times)
    return (("acquire", lock), READ, WRITE, ("release", lock)) * times


def nested(locks: Sequence[str]) -> Program:
    """Take locks one after the other, add one to the counter, and give them back.

    Args:
        locks: their names, in the order in which they are taken.

    Returns:
        The program.
    """
    take = tuple(("acquire", lock) for lock in locks)
    give = tuple(("release", lock) for lock in reversed(locks))
    return (*take, READ, WRITE, *give)


class State(NamedTuple):
    """Where some threads stand.

    Attributes:
        places: for each thread, how many steps it has done.
        registers: for each thread, what it has read.
        counter: the shared number.
        owners: pairs of a held lock and its holder, sorted.
    """

    places: tuple[int, ...]
    registers: tuple[int, ...]
    counter: int
    owners: tuple[tuple[str, int], ...]


def start(programs: Sequence[Program]) -> State:
    """Stand at the beginning.

    Args:
        programs: one for each thread.

    Returns:
        The state before the first step.
    """
    zeros = (0,) * len(programs)
    return State(zeros, zeros, 0, ())


def step(programs: Sequence[Program], state: State, k: int) -> State | None:
    """Let thread k do its next step.

    Args:
        programs: one for each thread.
        state: where they stand.
        k: the thread.

    Returns:
        The state after it; None if the thread has ended, or has to wait.

    Raises:
        ValueError: if a step is unknown, or releases a lock that the
            thread does not hold.
    """
    if state.places[k] == len(programs[k]):
        return None
    what, lock = programs[k][state.places[k]]
    places, registers = list(state.places), list(state.registers)
    counter, owners = state.counter, dict(state.owners)
    places[k] += 1
    if what == "read":
        registers[k] = counter
    elif what == "write":
        counter = registers[k] + 1
    elif what == "acquire":
        if lock in owners:
            return None
        owners[lock] = k
    elif what == "release" and owners.get(lock) == k:
        del owners[lock]
    else:
        raise ValueError(f"programs: thread {k} cannot {what} {lock}")
    held = tuple(sorted(owners.items()))
    return State(tuple(places), tuple(registers), counter, held)


def ends(programs: Sequence[Program]) -> tuple[Counter[int], set[State]]:
    """Go through all orders.

    Args:
        programs: one for each thread; few and short, since the states are many.

    Returns:
        In how many orders all threads end with the counter at a value, by value; and the states in
        which no thread can go on though not all have ended (deadlocks).
    """
    stuck: set[State] = set()

    @cache
    def below(state: State) -> tuple[tuple[int, int], ...]:
        after = [step(programs, state, k) for k in range(len(programs))]
        if not any(after):
            if all(place == len(p) for place, p in zip(state.places, programs, strict=True)):
                return ((state.counter, 1),)
            stuck.add(state)
            return ()
        orders: Counter[int] = Counter()
        for following in after:
            if following is not None:
                orders.update(dict(below(following)))
        return tuple(orders.items())

    return Counter(dict(below(start(programs)))), stuck


def follow(programs: Sequence[Program], order: Sequence[int]) -> int:
    """Do the steps in one order.

    Args:
        programs: one for each thread.
        order: the thread that does each step.

    Returns:
        The counter at the end.

    Raises:
        ValueError: if a thread is unknown, or cannot do its step when its turn comes, or steps are
            left over.
    """
    if unknown := set(order) - set(range(len(programs))):
        raise ValueError(f"order: threads count from 0 to {len(programs) - 1}, got {min(unknown)}")
    state = start(programs)
    for turn, k in enumerate(order):
        following = step(programs, state, k)
        if following is None:
            raise ValueError(f"order: thread {k} cannot go on at turn {turn}")
        state = following
    if any(place < len(p) for place, p in zip(state.places, programs, strict=True)):
        raise ValueError("order: it ends before the programs do")
    return state.counter


def in_step(threads: int, times: int) -> list[int]:
    """Order the increments so that all threads read before any of them writes.

    Args:
        threads: how many.
        times: increments of each.

    Returns:
        The order, for programs ``increments(times)``.

    Raises:
        ValueError: if one of the two is less than 1.
    """
    require_sizes(threads=threads, times=times)
    return list(range(threads)) * (2 * times)


def worst(threads: int, times: int) -> list[int]:
    """Order the increments so that as many as possible are lost.

    Thread 0 reads; all others do everything but the last increment of
    thread 1; thread 0 writes; thread 1 reads; thread 0 does the rest;
    thread 1 writes.

    Args:
        threads: at least 2.
        times: increments of each, at least 2.

    Returns:
        The order, for programs ``increments(times)``.

    Raises:
        ValueError: if one of the two is less than 2.
    """
    if min(threads, times) < 2:
        raise ValueError(f"threads, times: at least 2, got {threads}, {times}")
    others = [k for k in range(2, threads) for _ in range(2 * times)]
    rest = 2 * (times - 1)
    return [0, *[1] * rest, *others, 0, 1, *[0] * rest, 1]
