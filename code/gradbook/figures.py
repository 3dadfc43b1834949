"""From tensors to pictures."""

import numpy as np
from torch import Tensor


def host(tensor: Tensor) -> np.ndarray:
    """Bring a tensor to where matplotlib can draw it.

    Args:
        tensor: on any device, with or without a gradient.

    Returns:
        A NumPy array of the same shape.
    """
    return tensor.detach().cpu().numpy()
