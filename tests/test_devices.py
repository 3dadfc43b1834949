"""The choice of device: the environment first, then a GPU, then the CPU."""

import pytest
import torch

from gradbook import device


@pytest.mark.parametrize(("available", "name"), [(True, "cuda"), (False, "cpu")])
@pytest.mark.parametrize("variable", [None, ""])
def test_a_gpu_is_used_where_there_is_one(monkeypatch, available, name, variable):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.delenv("GRADBOOK_DEVICE", raising=False)
    if variable is not None:
        monkeypatch.setenv("GRADBOOK_DEVICE", variable)
    assert device() == torch.device(name)


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("name", ["cpu", "cuda:1", "meta"])
def test_the_environment_overrides_the_choice(monkeypatch, available, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setenv("GRADBOOK_DEVICE", name)
    assert device() == torch.device(name)


@pytest.mark.parametrize("name", ["abacus", "cuda:one", " "])
def test_an_unknown_device_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv("GRADBOOK_DEVICE", name)
    with pytest.raises(ValueError, match=f"^GRADBOOK_DEVICE='{name}' is not a device"):
        device()
