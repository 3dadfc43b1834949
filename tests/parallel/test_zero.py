"""An Adam shared out is one Adam."""

import pytest
import torch

from gradbook.parallel.schedules import all_gather, reduce_scatter, ring
from gradbook.parallel.simulator import simulate
from gradbook.parallel.zero import ShardedAdam, moment_bytes, owned


def test_who_ends_with_what():
    assert owned(reduce_scatter(4)) == [1, 2, 3, 0]
    assert owned(reduce_scatter(1)) == [0]
    for schedule in (ring(3), all_gather(3)):
        with pytest.raises(ValueError, match="^schedule: must reduce one chunk at each rank"):
            owned(schedule)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [1, 3, 10, 101])
def test_sharing_out_changes_nothing_but_the_memory(p, n):
    generator = torch.Generator().manual_seed(10 * p + n)
    start = torch.randn(n, generator=generator, dtype=torch.float64)
    one = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([one], lr=0.1)
    weights = [start.clone() for _ in range(p)]
    ranks = [ShardedAdam(start, reduce_scatter(p), r, 0.1) for r in range(p)]
    assert all(rank.moment_bytes == 0 for rank in ranks)
    for _ in range(4):
        gradients = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(p)]
        one.grad = simulate(ring(p), gradients, "mean").results[0]
        adam.step()
        halves = simulate(reduce_scatter(p), gradients, "mean").results
        for rank, mine, gradient in zip(ranks, weights, halves, strict=True):
            before = mine.clone()
            rank.step_(mine, gradient)
            before[rank.start : rank.stop] = mine[rank.start : rank.stop]
            assert torch.equal(mine, before)
        weights = simulate(all_gather(p), weights).results
    for mine in weights:
        # The same operations on the same numbers; vector and scalar code may round differently.
        torch.testing.assert_close(mine, one.detach(), rtol=0, atol=1e-14)
        assert torch.equal(mine, weights[0])
    assert sum(rank.moment_bytes for rank in ranks) == moment_bytes(adam) == 2 * 8 * n
    for rank in ranks:
        assert rank.moment_bytes == 2 * 8 * (rank.stop - rank.start)
        assert n // p <= rank.stop - rank.start <= -(-n // p)


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_the_two_halves_move_as_much_as_an_all_reduce(p):
    tensors = [torch.zeros(101) for _ in range(p)]
    parts = [simulate(schedule(p), tensors).bytes_sent for schedule in (reduce_scatter, all_gather)]
    assert [sum(two) for two in zip(*parts, strict=True)] == simulate(ring(p), tensors).bytes_sent


def test_bad_input_is_refused():
    weights = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^weights: must be \[N\], is \[2, 2\]"):
        ShardedAdam(weights.view(2, 2), reduce_scatter(2), 0, 0.1)
    for rank in (2, -1):
        with pytest.raises(ValueError, match="^rank: must be below 2"):
            ShardedAdam(weights, reduce_scatter(2), rank, 0.1)
    adam = ShardedAdam(weights, reduce_scatter(2), 0, 0.1)
    for odd, shape in ((weights[:3], 3), (weights.new_zeros(5), 5), (weights.view(4, 1), "4, 1")):
        with pytest.raises(ValueError, match=rf"^gradient: must be \[4\], is \[{shape}\]"):
            adam.step_(weights, odd)
        with pytest.raises(ValueError, match=rf"^weights: must be \[4\], is \[{shape}\]"):
            adam.step_(odd, odd)
    assert adam.moment_bytes == 0


def test_nothing_but_the_moments_is_kept():
    weights = torch.zeros(6, dtype=torch.float64)
    adam, gradient = ShardedAdam(weights, reduce_scatter(2), 0, 0.1), torch.ones_like(weights)
    adam.step_(weights, gradient)
    # Adam's first step is of the rate's size, whatever the gradient's.
    torch.testing.assert_close(weights, torch.tensor([0, 0, 0, -0.1, -0.1, -0.1]).double())
    assert adam._own.data_ptr() == weights[3:].data_ptr()
    assert adam._own.grad is None
    assert torch.equal(gradient, torch.ones_like(weights))
