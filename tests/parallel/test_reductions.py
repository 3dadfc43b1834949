"""Which tensors a collective takes, and how it combines them."""

import pytest
import torch

from gradbook.parallel import reductions


def tensors(p=3, n=4, dtype=torch.float32):
    return [torch.zeros(n, dtype=dtype, device="cpu") for _ in range(p)]


@pytest.mark.parametrize("dtype", reductions.FLOATING + reductions.INTEGERS)
def test_every_type_is_taken_and_only_floats_have_a_mean(dtype):
    for reduction in ("sum", "max", "min"):
        reductions.require_tensors(tensors(dtype=dtype), 3, reduction)
        two = [torch.tensor([1, 5], dtype=dtype), torch.tensor([4, 2], dtype=dtype)]
        expected = {"sum": [5, 7], "max": [4, 5], "min": [1, 2]}[reduction]
        combined = reductions.COMBINE[reduction](*two)
        assert (combined.tolist(), combined.dtype) == (expected, dtype)
    if dtype in reductions.FLOATING:
        reductions.require_tensors(tensors(dtype=dtype), 3, "mean")
    else:
        with pytest.raises(ValueError, match="a mean needs"):
            reductions.require_tensors(tensors(dtype=dtype), 3, "mean")


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.complex128, torch.uint16])
@pytest.mark.parametrize("reduction", reductions.COMBINE)
def test_other_types_are_refused(dtype, reduction):
    with pytest.raises(ValueError, match="real numbers"):
        reductions.require_tensors(tensors(dtype=dtype), 3, reduction)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.zeros(5), "rank 2 must have rank 0's shape"),
        (torch.zeros(2, 2), "rank 2 must have rank 0's shape"),
        (torch.zeros(4, dtype=torch.float64), "rank 2 must have rank 0's type"),
        (torch.zeros(8)[::2], "rank 2 must give a contiguous one"),
        (torch.zeros(4).to_sparse(), "rank 2 must give a contiguous one"),
        (torch.zeros(4, requires_grad=True), "rank 2 must give one without gradient"),
        (torch.zeros(4, device="meta"), "rank 2 must give one on the CPU"),
        ([0.0] * 4, "rank 2 must give a tensor, got list"),
    ],
)
def test_the_rank_whose_tensor_does_not_fit_is_named(odd, message):
    given = [*tensors(2), odd]
    with pytest.raises(ValueError, match=message):
        reductions.require_tensors(given, 3, "sum")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_compressed_rows_are_not_contiguous_whatever_they_say():
    with pytest.raises(ValueError, match="rank 2 must give a contiguous one"):
        reductions.require_tensors([*tensors(2), torch.eye(4).to_sparse_csr()], 3, "sum")


def test_number_and_reduction_must_be_right():
    for count in (0, 2, 4):
        with pytest.raises(ValueError, match=f"must be 3, one per rank, got {count}"):
            reductions.require_tensors(tensors(count), 3, "sum")
    with pytest.raises(ValueError, match="reduction: must be one of .*got 'product'"):
        reductions.require_tensors(tensors(), 3, "product")


def test_one_tensor_is_judged_by_itself():
    reductions.require_tensor(torch.zeros(3, device="cpu"), 1)
    reductions.require_tensor(torch.zeros(3, device="meta"), 1, devices=("cpu", "meta"))
    with pytest.raises(ValueError, match="rank 1 must give one on the CPU or cuda, got meta"):
        reductions.require_tensor(torch.zeros(3, device="meta"), 1, devices=("cpu", "cuda"))
