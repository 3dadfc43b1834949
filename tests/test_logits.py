import math

import pytest
import torch
from torch.func import vmap

from gradbook.logits import (
    centred,
    checked_temperature,
    exp_underflow,
    one_hot,
    over_temperature,
    perturbed,
    picks,
    require_classes,
    require_fits,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INF = math.inf


def some(*shape, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_centred_rows_have_their_largest_at_zero():
    logits = some(4, 3)
    logits[1, 1] = -INF
    ours = centred(logits)
    assert (ours.amax(-1) == 0).all()
    assert torch.equal(ours, logits - logits.amax(-1, keepdim=True))
    assert centred(logits[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    "row", [[0.0, math.nan], [INF, 0.0], [INF, INF], [-INF, -INF], [-INF, INF]]
)
def test_rows_without_a_law_are_refused(row):
    with pytest.raises(ValueError, match="^logits: must have no NaN and no plus infinity, and a"):
        centred(torch.tensor([[0.0, 1.0], row]))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_logits_need_a_class(shape):
    with pytest.raises(ValueError, match="^logits: must have at least one class"):
        centred(torch.zeros(shape))


def test_centring_takes_the_wider_type_first_and_is_a_constant_for_autograd():
    logits = torch.tensor([3.0, 0.00021], dtype=F16).requires_grad_()
    ours = centred(logits, F32)
    assert ours.dtype == F32
    assert ours[1].item() == pytest.approx(logits[1].item() - 3, rel=1e-7)
    assert torch.autograd.grad(ours.sum(), logits)[0].tolist() == [1, 1]
    assert centred(torch.tensor([1, 5])).tolist() == [-4, 0]


def test_perturbed_adds_and_tells_the_largest():
    logits, noise = some(4, 3), some(5, 4, 3)
    scores, largest = perturbed(logits, noise)
    assert torch.equal(scores, centred(logits) + noise)
    assert torch.equal(largest, scores.amax(-1, keepdim=True))
    same, _ = perturbed(logits, noise[2])
    assert torch.equal(same, scores[2])
    leaf = logits.clone().requires_grad_()
    assert not perturbed(leaf, noise)[1].requires_grad


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_perturbed_under_vmap(axes):
    logits, noise = some(4, 3), 2 * some(4, 3)
    row = [x if axis == 0 else x[0] for x, axis in zip((logits, noise), axes, strict=True)]
    scores, largest = vmap(perturbed, in_dims=axes)(*row)
    exact, exact_largest = perturbed(*row)
    torch.testing.assert_close(scores, exact.expand(4, 3), rtol=0, atol=0)
    torch.testing.assert_close(largest, exact_largest.expand(4, 1), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_exponentials_underflow_at_the_limit_and_not_two_above(dtype):
    limit = exp_underflow(dtype)
    exact = torch.tensor(limit, dtype=F64).exp()
    assert exact.to(dtype) == 0
    assert (exact * math.e**2).to(dtype) > 0 or dtype == F64
    assert math.exp(limit + 2) > 0


@pytest.mark.parametrize("as_tensor", [False, True])
def test_over_temperature_divides_differences_from_the_largest(as_tensor):
    scores, tau = some(4, 3), 0.3
    largest = scores.amax(-1, keepdim=True)
    exact = (scores - largest) / tau
    given = torch.tensor(tau, dtype=F64) if as_tensor else tau
    torch.testing.assert_close(
        over_temperature(scores.clone(), largest, given, -INF), exact, rtol=1e-14, atol=0
    )
    assert scores.amax() > 0


def test_quotients_at_the_floor_have_no_slope_in_the_temperature():
    tau = torch.tensor(0.5, dtype=F64).requires_grad_()
    scores = torch.tensor([1.0, 0.0, -9.0, -INF], dtype=F64)
    ours = over_temperature(scores, scores[:1].clone(), tau, -20.0)
    assert ours.tolist() == [0, -2, -INF, -INF]
    (slope,) = torch.autograd.grad(ours[1] + ours[3], tau)
    assert slope == 4


@pytest.mark.parametrize("value", [1, 0.3, 1e-30, 3e38, torch.tensor(2), torch.tensor([[0.3]])])
def test_good_temperatures_pass(value):
    checked = checked_temperature(value, torch.zeros(2, 3))
    assert checked is value or (isinstance(checked, float) and checked == value)


def test_a_temperature_must_be_normal_in_the_type_of_the_quotient():
    for dtype in (F16, BF16, F32, F64):
        tiny, scores = torch.finfo(dtype).tiny, torch.zeros(2, 3, dtype=dtype)
        assert checked_temperature(tiny, scores) == tiny
        for bad in (tiny / 2, torch.tensor(tiny / 2, dtype=F64), torch.finfo(dtype).max * 4.0):
            with pytest.raises(ValueError, match="temperature: must be positive and finite"):
                checked_temperature(bad, scores)
    # A tensor with axes decides the type of the quotient; a scalar does not.
    assert checked_temperature(torch.tensor([1e-50], dtype=F64), torch.zeros(3)).dtype == F64


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, INF, -INF])
@pytest.mark.parametrize("make", [float, torch.tensor, lambda x: torch.tensor([[1.0], [x]])])
def test_bad_temperatures_are_refused(make, value):
    with pytest.raises(ValueError, match="temperature: must be positive and finite"):
        checked_temperature(make(value), torch.zeros(2, 3))


def test_temperatures_of_a_wrong_shape_or_device_are_refused():
    scores = torch.zeros(2, 3)
    for bad in (torch.ones(2), torch.ones(3), torch.ones(1, 3)):
        with pytest.raises(ValueError, match="temperature: must be a number or have a last axis"):
            checked_temperature(bad, scores)
    with pytest.raises(ValueError, match="temperature: does not broadcast"):
        checked_temperature(torch.ones(5, 1), scores)
    with pytest.raises(ValueError, match="temperature: is on meta"):
        checked_temperature(torch.ones(2, 1, device="meta"), scores)


def test_one_hot_is_torchs():
    index = torch.tensor([[0, 2], [1, 2]])
    exact = torch.nn.functional.one_hot(index, 4)
    for dtype in (None, F64, torch.int64):
        ours = one_hot(index, 4, dtype)
        assert ours.dtype == (dtype or torch.get_default_dtype())
        assert torch.equal(ours, exact.to(ours.dtype))
    assert torch.equal(vmap(lambda i: one_hot(i, 4))(index), exact.to(torch.get_default_dtype()))
    assert one_hot(index[:0], 4).shape == (0, 2, 4)
    assert one_hot(torch.tensor(1), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("index", "classes", "message"),
    [
        ([3], 3, "index: must be from 0 to 2"),
        ([-1], 3, "index: must be from 0 to 2"),
        ([1.0], 3, "index: must be integers"),
        ([True], 3, "index: must be integers"),
        ([0], 0, "classes: must be at least 1"),
    ],
)
def test_indices_that_are_refused(index, classes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        one_hot(torch.tensor(index), classes)
    with pytest.raises(ValueError, match=f"^{message.replace('index', 'mine')}"):
        picks("mine", torch.tensor(index), classes)


def test_checks_of_shapes():
    require_classes("x", torch.zeros(2, 3), 3)
    for bad in (torch.zeros(()), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="^x: must have 3 classes"):
            require_classes("x", bad, 3)
    require_fits("x", torch.zeros(2, 1), "y", torch.zeros(5))
    with pytest.raises(ValueError, match=r"^x: does not broadcast with y: \(2,\) and \(5,\)"):
        require_fits("x", torch.zeros(2), "y", torch.zeros(5))
    with pytest.raises(ValueError, match="^x: is on meta, y on cpu"):
        require_fits("x", torch.zeros(2, device="meta"), "y", torch.zeros(2))


def test_a_number_is_checked_without_a_tensor():
    """A page may have a GPU for its default device, and logits on the CPU."""
    with torch.device("meta"):
        assert checked_temperature(0.5, torch.zeros(3, device="cpu")) == 0.5
        with pytest.raises(ValueError, match="temperature: must be positive"):
            checked_temperature(math.nan, torch.zeros(3, device="cpu"))
