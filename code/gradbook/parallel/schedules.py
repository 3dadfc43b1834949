"""Every algorithm of all-reduce by its name, each a function from the world's size to a schedule.

What a schedule is stands in `gradbook.parallel.transfers`; that one is right, in
`gradbook.parallel.tracing`.
"""

from gradbook.parallel.double_trees import double_tree
from gradbook.parallel.recursive import halving_doubling, recursive_doubling
from gradbook.parallel.rings import all_gather, reduce_scatter, ring, ring_both, ring_reversed
from gradbook.parallel.tracing import contributions, require_valid
from gradbook.parallel.transfers import (
    COPY,
    REDUCE,
    Schedule,
    Transfer,
    bounds,
    require_transfers,
    steps,
)
from gradbook.parallel.trees import binomial, root

__all__ = [
    "ALGORITHMS",
    "COPY",
    "REDUCE",
    "Schedule",
    "Transfer",
    "all_gather",
    "binomial",
    "bounds",
    "contributions",
    "double_tree",
    "halving_doubling",
    "recursive_doubling",
    "reduce_scatter",
    "require_transfers",
    "require_valid",
    "ring",
    "ring_both",
    "ring_reversed",
    "root",
    "steps",
]

# What all-reduces; its two halves on a ring, reduce_scatter and all_gather, stand apart.
ALGORITHMS = {
    "ring": ring,
    "ring_reversed": ring_reversed,
    "ring_both": ring_both,
    "root": root,
    "binomial": binomial,
    "recursive_doubling": recursive_doubling,
    "halving_doubling": halving_doubling,
    "double_tree": double_tree,
}
