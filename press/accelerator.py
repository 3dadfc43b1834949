"""The device that was asked for, tried before hours depend on it: ``python -m press.accelerator cuda``."""

import json
import shutil
import subprocess
import sys
from typing import NamedTuple

# In a process of its own: a context on the card would take memory from the chapter that runs there.
_TRY = """
import json, sys, torch
where = torch.device(sys.argv[1])
torch.ones(2, device=where).sum().item()
card = torch.cuda.get_device_name(where) if where.type == "cuda" else f"no card, {where.type}"
print(json.dumps([where.type, card, torch.__version__.split("+")[0]]))
"""


class DeviceError(RuntimeError):
    """The device that was asked for cannot compute here."""


class Machine(NamedTuple):
    """What chapters run on: the type of the device, the card, its driver, and torch's version."""

    device: str
    card: str
    driver: str
    torch: str


def machine(name: str) -> Machine:
    """Try a device, and say what it is.

    Args:
        name: such as ``cuda``, ``cuda:1`` or ``cpu``.

    Returns:
        What the chapters would run on.

    Raises:
        DeviceError: if torch cannot add two numbers there; nothing falls back to the CPU.
    """
    tried = subprocess.run([sys.executable, "-c", _TRY, name], capture_output=True, text=True)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DeviceError(f"DEVICE={name}: torch cannot compute there. {reason}")
    kind, card, version = json.loads(tried.stdout.splitlines()[-1])
    return Machine(kind, card, _driver() if kind == "cuda" else "none", version)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.split("\n")[0].strip() or "unknown"


def main(arguments: list[str]) -> int:
    """Say what the device is, or why it is none.

    Args:
        arguments: the name of the device.

    Returns:
        The exit status.
    """
    (name,) = arguments
    try:
        print("{1}, driver {2}, torch {3}".format(*machine(name)))
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
