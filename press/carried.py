"""Run what a bundle carries: ``python part-1/run.py``, with a Python that has torch, and no network.

``make gpu-bundle`` puts this file into the bundle as ``run.py``. It needs the standard library alone,
makes an environment of its own beside the parts, installs the carried wheels into it without what
they ask for, and runs the chapters whose files have arrived. The machine's torch is used and must
stay as it is.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

TORCH = "import torch; print(torch.__version__, torch.__file__)"
PLACES = "import json, sys; print(json.dumps([p for p in sys.path if p.endswith('-packages')]))"
# Below the folder that is named: what stands there beside it is not ours to remove.
WORK = "gradbook-work"


class CarriedError(RuntimeError):
    """The bundle cannot run here; the message says why."""


def possible(plan: dict, parts: Path) -> list[str]:
    """List the chapters all of whose files have arrived.

    Args:
        plan: what ``plan.json`` holds.
        parts: the folder of ``part-1`` and the others.

    Returns:
        Their names, those that need least first.
    """

    def arrived(name: str) -> bool:
        return all((parts / piece).is_file() for piece in plan["files"][name]["pieces"])

    if not all(map(arrived, plan["base"])):
        return []
    return [name for name, files in plan["chapters"].items() if all(map(arrived, files))]


def whole(plan: dict, name: str, parts: Path, work: Path) -> Path:
    """Join the pieces of a file and check it.

    Args:
        plan: what ``plan.json`` holds.
        name: the file's name.
        parts: the folder of the parts.
        work: where the joined file goes.

    Returns:
        The file, in ``work``.

    Raises:
        CarriedError: if it is not what was packed.
    """
    path, sha256 = work / name, plan["files"][name]["sha256"]
    # One that is there may be of an older bundle.
    if not _is(path, sha256):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as joined:
            for piece in plan["files"][name]["pieces"]:
                joined.write((parts / piece).read_bytes())
    if not _is(path, sha256):
        raise CarriedError(f"{name} did not arrive as it was packed: carry its parts again")
    return path


def over(base: str | Path, folder: Path, *options: str, more: Iterable[str] = ()) -> Path:
    """Make an environment that sees the packages of another Python, behind its own.

    Args:
        base: the other Python, which may be an environment's itself.
        folder: where it goes; one that is there is used again.
        *options: what ``venv`` is told.
        more: other folders of packages.

    Returns:
        Its Python.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([base, "-m", "venv", *options, folder], check=True)
    asked = subprocess.run([base, "-c", PLACES], check=True, capture_output=True, text=True)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    lines = dict.fromkeys([*json.loads(asked.stdout), *more])
    (packages / "base.pth").write_text("\n".join(lines) + "\n")
    return python


def environment(folder: Path) -> Path:
    """Make an environment that sees this Python's own packages, its torch among them.

    Args:
        folder: where it goes; one that is there is used again.

    Returns:
        Its Python.

    Raises:
        CarriedError: if this Python has no torch.
    """
    # venv shows the packages of the Python below; where this Python is itself an environment's, its
    # own, torch among them, are not there.
    torch = Path(_torch()[1]).parent.parent
    options = ("--system-site-packages", "--without-pip")
    return over(sys.executable, folder, *options, more=[str(torch)])


def install(python: Path, wheels: list[Path]) -> None:
    """Install wheels, without what they ask for, and hold torch to what it was.

    Args:
        python: the environment's Python.
        wheels: files.

    Raises:
        CarriedError: if pip fails, or the environment has another torch than the machine.
    """
    command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    options = ["--disable-pip-version-check", "--no-warn-script-location", *wheels]
    done = subprocess.run([*command, *options], env=_variables(), capture_output=True, text=True)
    if done.returncode:
        raise CarriedError(f"pip stopped:\n{done.stderr}")
    if (found := _torch(python)) != (before := _torch()):
        raise CarriedError(f"torch was {' '.join(before)} and is now {' '.join(found)}")


def main(arguments: list[str], parts: Path) -> int:
    """Run the chapters that the parts at hand allow, and write the record.

    Args:
        arguments: the command line without the program's name.
        parts: the folder of the parts.

    Returns:
        The exit status: 1 if a chapter stopped, 2 if none could run.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the path")
    out = Path(os.environ.get("OUT", "."))
    parser.add_argument(
        "--out", type=Path, default=out, help="the folder of gpu.json: $OUT or here"
    )
    parser.add_argument(
        "--work", type=Path, default=parts, help=f"where {WORK} goes, in which it is unpacked"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters; else those not yet run")
    chosen = parser.parse_args(arguments)
    plan = json.loads((parts / "part-1" / "plan.json").read_text())
    work = chosen.work.resolve() / WORK
    record = work / "gpu.json"
    try:
        names = _chapters(plan, parts, chosen.names, record)
        python = _prepared(plan, names, parts, work)
    except CarriedError as error:
        print(error, file=sys.stderr)
        return 2
    # The second is for whoever empties the folder of the results between two calls.
    places = ["--to", str(record), "--to", str(chosen.out.resolve() / "gpu.json")]
    command = [python, "-m", "press.gpu", "--device", chosen.device, *places, *names]
    return subprocess.run(command, cwd=work / "book", env=_variables(work)).returncode


def _chapters(plan: dict, parts: Path, wanted: list[str], record: Path) -> list[str]:
    """Choose what to run: what was asked for, or what can run and has not."""
    here = "{}.{}".format(*sys.version_info)
    if here != plan["python"]:
        raise CarriedError(f"the bundle is for Python {plan['python']}, and this is {here}")
    ready = possible(plan, parts)
    if missing := sorted(set(wanted) - set(ready)):
        raise CarriedError(f"parts are missing for {', '.join(missing)}; ready: {', '.join(ready)}")
    ran = json.loads(record.read_text())["chapters"] if record.is_file() else {}
    names = wanted or [name for name in ready if name not in ran]
    if not names:
        raise CarriedError(f"nothing to run: the parts at hand allow {', '.join(ready) or 'none'}")
    return names


def _prepared(plan: dict, names: list[str], parts: Path, work: Path) -> Path:
    """Unpack and install what these chapters need."""
    files = dict.fromkeys([*plan["base"], *(f for name in names for f in plan["chapters"][name])])
    paths = [whole(plan, name, parts, work) for name in files]
    shutil.rmtree(work / "book", ignore_errors=True)
    with tarfile.open(work / "book.tar.gz") as book:
        book.extractall(work / "book", filter="data")
    python = environment(work / "venv")
    install(python, [path for path in paths if path.suffix == ".whl"])
    return python


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _torch(python: str | Path = sys.executable) -> list[str]:
    command = [python, "-c", TORCH]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CarriedError(f"{python} has no torch: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip().split(" ", 1)


def _variables(work: Path | None = None) -> dict[str, str]:
    """The shell's variables, with a path and settings of ours; nothing asks the network."""
    found = os.environ | {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    found.pop("PYTHONPATH", None)
    if work is not None:
        places = {"PYTHONPATH": "book", "GRADBOOK_DATA": "data", "MPLCONFIGDIR": "matplotlib"}
        found |= {key: str(work / folder) for key, folder in places.items()}
        # A person's own kernels are others than the environment's.
        found["JUPYTER_PREFER_ENV_PATH"] = "1"
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))
