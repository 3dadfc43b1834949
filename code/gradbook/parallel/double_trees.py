"""All-reduce on two binary trees at once, as a pipeline.

In a broadcast down a binary tree the inner nodes send twice and the leaves never, so one tree alone
leaves half of the ports idle. Two trees share the work, each with half of the chunks: every rank is
inner in one and a leaf in the other, but for rank 0 of an odd number, which has one child in each.
No rank has more than two children in all. Source: P. Sanders,
J. Speck and J. L. Träff, 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and
scan"; the trees are those of NCCL (`src/graph/trees.cc`).
"""

from gradbook.parallel.transfers import COPY, Move, Schedule, numbered
from gradbook.parallel.trees import backwards
from gradbook.transformer_sizes import require_sizes

Edge = tuple[int, int]  # tree and child: the way to it from its parent


def double_tree(world_size: int, segments: int = 4) -> Schedule:
    """All-reduce on two trees, each with half of the chunks.

    The broadcast takes turns of one or two steps. In each turn an edge of
    a tree carries one chunk, and no rank sends or receives twice in a
    step. The reduction comes first: it is the broadcast backwards.

    Args:
        world_size: p.
        segments: chunks of each tree.

    Returns:
        On twice as many chunks as segments; those of tree t are t, t + 2
        and so on.

    Raises:
        ValueError: if a number is not a positive integer.
    """
    require_sizes(world_size=world_size, segments=segments)
    up, first = parents(world_size), starts(world_size)
    turn = 1 + max(turns(world_size).values(), default=0)
    length = turn * (segments - 1) + 1 + max(first.values(), default=0)
    spread: list[list[Move]] = [[] for _ in range(length)]
    for (tree, child), start in first.items():
        for k in range(segments):
            move = (up[tree][child], child, 2 * k + tree, COPY)
            spread[start + turn * k].append(move)
    rounds = backwards(spread) + spread
    return numbered("double_tree", world_size, 2 * segments, rounds)


def parents(world_size: int) -> tuple[dict[int, int], dict[int, int]]:
    """Find the parent of every rank in each of the two trees.

    In the first tree rank 0 is the root and odd ranks are leaves. The
    second is its mirror image where p is even; where p is odd it is the
    first, shifted by one.

    Args:
        world_size: p.

    Returns:
        Parent by rank; the root has none.

    Raises:
        ValueError: if p is not a positive integer.
    """
    require_sizes(world_size=world_size)
    p = world_size
    tree = {i: _parent(i, p) for i in range(1, p)}
    if p % 2:
        return tree, {(i + 1) % p: (j + 1) % p for i, j in tree.items()}
    return tree, {p - 1 - i: p - 1 - j for i, j in tree.items()}


def _parent(rank: int, p: int) -> int:
    # ...01 and ...11 hang under ...10; where that is no rank, under ...00.
    bit = rank & -rank
    parent = (rank ^ bit) | (bit << 1)
    return parent if parent < p else rank ^ bit


def turns(world_size: int) -> dict[Edge, int]:
    """Give every edge of the trees its place in the turn, 0 or 1.

    Two edges that leave the same rank differ, and so do two that enter
    it. No more than two edges share a port, and a chain of edges that
    share ports alternates between the two kinds; it closes after an even
    number, so two places do.

    Args:
        world_size: p.

    Returns:
        Place by tree and child.

    Raises:
        ValueError: if p is not a positive integer.
    """
    neighbours, place = _sharing(world_size), {}
    for edge in neighbours:
        waiting = [] if edge in place else [edge]
        place.setdefault(edge, 0)
        while waiting:
            one = waiting.pop()
            new = [other for other in neighbours[one] if other not in place]
            place.update((other, 1 - place[one]) for other in new)
            waiting += new
    return place


def _sharing(world_size: int) -> dict[Edge, list[Edge]]:
    # The edges that leave or enter a rank by the same port as an edge does.
    up = parents(world_size)
    port: dict[tuple[str, int], list[Edge]] = {}
    for tree in (0, 1):
        for child in sorted(up[tree]):
            for end in (("out", up[tree][child]), ("in", child)):
                port.setdefault(end, []).append((tree, child))
    neighbours: dict[Edge, list[Edge]] = {}
    for edges in port.values():
        for edge in edges:
            others = [other for other in edges if other != edge]
            neighbours.setdefault(edge, []).extend(others)
    return neighbours


def starts(world_size: int) -> dict[Edge, int]:
    """Find the step of the broadcast in which an edge is first used.

    It is the first step after that of the edge above whose place in the
    turn is right. Steps are counted from the first in which any edge is
    used.

    Args:
        world_size: p.

    Returns:
        Step by tree and child.

    Raises:
        ValueError: if p is not a positive integer.
    """
    up, place = parents(world_size), turns(world_size)
    turn = 1 + max(place.values(), default=0)

    def start(tree: int, rank: int) -> int:
        if rank not in up[tree]:
            return -1
        after = start(tree, up[tree][rank]) + 1
        return after + (place[tree, rank] - after) % turn

    found = {edge: start(*edge) for edge in place}
    least = min(found.values(), default=0)
    return {edge: step - least for edge, step in found.items()}
