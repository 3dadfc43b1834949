import numpy as np
import pytest
import torch

from gradbook.figures import host


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_values_shape_and_precision_are_kept(dtype, shape):
    tensor = (torch.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).to(dtype)
    array = host(tensor)
    assert isinstance(array, np.ndarray)
    assert array.dtype == tensor.numpy().dtype
    np.testing.assert_array_equal(array, tensor.tolist() if shape != (0, 2) else np.empty(shape))


def test_a_tensor_with_a_gradient_can_be_drawn():
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    np.testing.assert_array_equal(host(leaf * 3), [3, 6])
    assert leaf.requires_grad


def test_a_transposed_tensor_keeps_its_order():
    tensor = torch.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(host(tensor), [[0, 3], [1, 4], [2, 5]])
