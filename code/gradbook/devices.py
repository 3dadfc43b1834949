"""Where the book's tensors live."""

import os

import torch


def device() -> torch.device:
    """Choose CUDA when there is a GPU and the CPU otherwise.

    The environment variable ``GRADBOOK_DEVICE`` overrides the choice.

    Returns:
        The device that every chapter moves its tensors to.

    Raises:
        ValueError: if ``GRADBOOK_DEVICE`` names no device that torch knows.
    """
    name = os.environ.get("GRADBOOK_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"GRADBOOK_DEVICE={name!r} is not a device that torch knows") from error
