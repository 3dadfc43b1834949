"""What the tests share."""

import pytest
import torch
from hypothesis import settings

from gradbook import data

# Hypothesis times no example: on a busy machine a deadline measures the neighbours.
settings.register_profile("book", deadline=None)
settings.load_profile("book")


@pytest.fixture
def stand_in(monkeypatch):
    """Puts random images in the place of Fashion-MNIST, as many of each split as are asked for."""

    def put(**sizes):
        monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
        sets = {}
        for split, n in sizes.items():
            generator = torch.Generator().manual_seed(n)
            grey = torch.randint(256, (n, 28, 28), generator=generator, dtype=torch.uint8)
            sets[split] = data.Images(grey, torch.zeros(n, dtype=torch.int64))
        monkeypatch.setattr(data, "fashion_mnist", lambda split: sets[split])
        return sets

    return put
