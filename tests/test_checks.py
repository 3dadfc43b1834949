import pytest
import torch
from torch.func import grad, vmap

from gradbook.checks import is_transformed, plain, require, require_finite, require_positive


def test_plain_sees_the_whole_batch_under_nested_transforms():
    seen = []

    def f(theta, noise):
        seen.append(plain(theta * noise))
        return theta * noise

    noise = torch.tensor([1.0, 2.0, 3.0])
    vmap(grad(f), in_dims=(None, 0))(torch.tensor(2.0), noise)
    assert torch.equal(seen[0], 2 * noise)
    assert not seen[0].requires_grad


def test_plain_cuts_the_gradient():
    theta = torch.tensor(2.0, requires_grad=True)
    assert not plain(theta * 3).requires_grad


def test_transforms_are_seen_in_any_argument():
    seen = []

    def f(theta, noise):
        seen.append((is_transformed(noise, noise), is_transformed(noise, theta)))
        return theta * noise.sum()

    noise = torch.tensor([1.0, 2.0])
    assert not is_transformed(noise, noise)
    vmap(f, in_dims=(0, None))(torch.ones(3), noise)
    vmap(f, in_dims=(None, 0))(torch.tensor(2.0), noise)
    assert seen == [(False, True), (True, True)]


def test_require():
    require(torch.tensor([True, True]), "x: fine")
    require(torch.zeros(0, dtype=torch.bool), "x: an empty batch is fine")
    with pytest.raises(ValueError, match="x: one is not"):
        require(torch.tensor([True, False]), "x: one is not")


def test_require_refuses_one_bad_row_of_a_batch():
    def f(x):
        require_positive(x=x)
        return x.log()

    good = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(vmap(grad(f))(good), 1 / good)
    with pytest.raises(ValueError, match="x: must be positive"):
        vmap(grad(f))(torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_require_finite_names_the_argument(bad):
    require_finite(a=torch.tensor(1.0), b=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="b: must be finite"):
        require_finite(a=torch.tensor(1.0), b=torch.tensor([0.0, bad]))
    with pytest.raises(ValueError, match="b: must be finite"):
        require_finite(a=1, b=bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_require_positive_names_the_argument(bad):
    with pytest.raises(ValueError, match="rate: must be positive"):
        require_positive(rate=torch.tensor([1.0, bad]))
