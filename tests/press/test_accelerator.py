"""A device is tried before anything depends on it; a missing one is never replaced by the CPU."""

import subprocess

import pytest
import torch

from press import accelerator


def test_the_cpu_computes_and_says_what_it_is():
    version = torch.__version__.split("+")[0]
    assert accelerator.machine("cpu") == ("cpu", "no card, cpu", "none", version)


def test_a_device_that_torch_does_not_know_is_refused():
    with pytest.raises(accelerator.DeviceError, match="^DEVICE=abacus: torch cannot compute there"):
        accelerator.machine("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a card")
def test_without_a_card_cuda_is_refused_and_main_says_so(capsys):
    assert accelerator.main(["cuda"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("DEVICE=cuda: torch cannot compute there. ")


def test_a_device_that_holds_no_values_is_none():
    with pytest.raises(accelerator.DeviceError, match="DEVICE=meta"):
        accelerator.machine("meta")


@pytest.fixture
def card(monkeypatch):
    """A machine with a card, and with or without nvidia-smi, that answers with ``driver``."""

    def put(smi, driver):
        def run(command, **_):
            if command[0] == "nvidia-smi":
                return subprocess.CompletedProcess(command, 0 if driver else 9, driver, "")
            out = 'a warning\n["cuda", "Card X", "2.13.0"]\n'
            return subprocess.CompletedProcess(command, 0, out, "")

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(accelerator.shutil, "which", lambda _: smi)

    return put


@pytest.mark.parametrize(
    ("smi", "answer", "driver"),
    [
        ("/bin/nvidia-smi", "580.1\n580.2\n", "580.1"),
        ("/bin/nvidia-smi", "", "unknown"),
        (None, "580.1\n", "unknown"),
    ],
)
def test_a_card_comes_with_its_driver(card, capsys, smi, answer, driver):
    card(smi, answer)
    assert accelerator.machine("cuda") == ("cuda", "Card X", driver, "2.13.0")
    assert accelerator.main(["cuda"]) == 0
    assert capsys.readouterr().out == f"Card X, driver {driver}, torch 2.13.0\n"


def test_a_device_that_dies_without_a_word_is_refused(monkeypatch):
    dead = subprocess.CompletedProcess([], -11, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: dead)
    with pytest.raises(accelerator.DeviceError, match="no reason given"):
        accelerator.machine("cuda")
