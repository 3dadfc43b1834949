"""The gradient of many ranks is that of one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradbook import normal_vae
from gradbook.parallel.data_parallel import (
    Batch,
    Losses,
    averaged,
    gradient,
    image_weight,
    packed,
    share_loss,
    shares,
    unpack_,
)
from gradbook.parallel.schedules import ALGORITHMS
from gradbook.parallel.simulator import simulate


def a_model():
    return normal_vae.build(6, 2, 4, torch.Generator().manual_seed(1)).double()


def a_batch(n):
    generator = torch.Generator().manual_seed(n)
    kind = {"generator": generator, "dtype": torch.float64}
    return Batch(torch.rand(n, 6, **kind).round(), torch.randn(n, 2, **kind))


def one_gradient(model, batch):
    """The same by autograd's usual way, of a mean."""
    model.zero_grad()
    (-normal_vae.elbo(model, *batch)).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_equal_shares_give_the_gradient_of_the_whole(name, p):
    model, batch = a_model(), a_batch(12)

    def mean(tensors):
        return simulate(ALGORITHMS[name](p), tensors, "mean").results

    found = averaged(model, shares(batch, [12 // p] * p), mean)
    assert len(found) == p
    # Gradients are about 1; sums of twelve numbers round in their last digits.
    for one in found:
        torch.testing.assert_close(one, one_gradient(model, batch), rtol=0, atol=1e-13)
        assert torch.equal(one, found[0])


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(sum))
def test_unequal_shares_count_by_their_images(sizes):
    model, batch = a_model(), a_batch(sum(sizes))
    found = averaged(model, shares(batch, sizes), lambda ts: [sum(ts) / len(ts)])
    torch.testing.assert_close(found[0], one_gradient(model, batch), rtol=0, atol=1e-13)


def test_the_plain_mean_of_unequal_means_is_another_gradient():
    model, batch = a_model(), a_batch(10)
    means = [one_gradient(model, part) for part in shares(batch, [2, 8])]
    whole = one_gradient(model, batch)
    assert (sum(means) / 2 - whole).norm() > 0.05 * whole.norm()


def test_shares_keep_images_and_noise_together():
    batch = Batch(torch.arange(10.0).view(5, 2), torch.arange(5.0).view(5, 1))
    parts = shares(batch, [2, 0, 3])
    assert [part.images[:, 0].tolist() for part in parts] == [[0, 2], [], [4, 6, 8]]
    assert [part.noise[:, 0].tolist() for part in parts] == [[0, 1], [], [2, 3, 4]]


@pytest.mark.parametrize("sizes", [[2, 2], [6, -1], [5.0], []])
def test_shares_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="^sizes: must be at least 0 and add up to 5"):
        shares(a_batch(5), sizes)


def test_batches_that_do_not_fit_are_refused():
    batch = a_batch(5)
    with pytest.raises(ValueError, match="^batch: .* got 5 images and 4 rows"):
        shares(batch._replace(noise=batch.noise[:4]), [5])
    with pytest.raises(ValueError, match="^batch: .* got 0 images"):
        shares(a_batch(0), [0])
    with pytest.raises(ValueError, match="^batch: .* got 5 images and 6 rows"):
        shares(batch._replace(noise=a_batch(6).noise), [5])
    with pytest.raises(ValueError, match="^sizes: must be an image at least"):
        averaged(a_model(), [a_batch(0)], list)


def test_the_mean_of_the_ranks_losses_is_the_loss():
    model, batch, sizes = a_model(), a_batch(7), [4, 0, 3]
    assert image_weight(sizes) == 3 / 7
    parts = [share_loss(Losses(model), part, 3 / 7) for part in shares(batch, sizes)]
    whole = -normal_vae.elbo(model, *batch).mean()
    torch.testing.assert_close(sum(parts) / 3, whole, rtol=1e-14, atol=0)


def test_losses_are_minus_the_bound():
    model, batch = a_model(), a_batch(3)
    assert torch.equal(Losses(model)(*batch), -normal_vae.elbo(model, *batch))
    assert gradient(model, batch, 0.0).count_nonzero() == 0


def test_packing_keeps_order_and_is_undone():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    flat = packed(layer.parameters())
    assert flat.tolist() == [*layer.weight.flatten().tolist(), *layer.bias.tolist()]
    assert not flat.requires_grad
    unpack_(list(layer.parameters()), torch.arange(8.0, dtype=torch.float64))
    assert layer.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert layer.bias.tolist() == [6, 7]
    with pytest.raises(ValueError, match=r"^flat: must be \[8\], is \[7\]"):
        unpack_(list(layer.parameters()), torch.zeros(7))
    with pytest.raises(ValueError, match="^tensors: must be of one type"):
        packed([torch.zeros(1), torch.zeros(1, dtype=torch.float64)])
