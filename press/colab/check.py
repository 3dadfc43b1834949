"""Run the notebooks for Colab as its readers do: ``python -m press.colab.check``, or ``make colab-check``.

Each notebook gets a folder that holds it and the wheel and nothing else, and an environment that holds what
Colab has and nothing else: a fresh one that also looks into the packages of a base. In Colab's own image
the base is the image's Python; elsewhere it is made from the dated list.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from press import outputs
from press.carried import over
from press.colab.install import LIST, colab_has
from press.paths import CHAPTERS, ROOT

BUILT = ROOT / "_build" / "colab"
BASE = ROOT / ".cache" / "colab"
CELL_TIMEOUT_SECONDS = 900
# Over TCP the kernel would warn that its loopback sockets are not encrypted.
QUIET = "--IPKernelApp.log_level=40"
TORCHES = (
    "import json; from importlib.metadata import distributions; "
    "print(json.dumps([one.version for one in distributions(name='torch')]))"
)


class CheckError(RuntimeError):
    """A notebook did not do for its reader what it did when it was checked."""


def made_base(python: str, folder: Path = BASE) -> Path:
    """Make the environment that stands for Colab from the dated list, unless it is there.

    Args:
        python: a Python of the version that the list names, or near it.
        folder: where it goes.

    Returns:
        Its Python.
    """
    done = folder / LIST.name
    if not done.exists() or done.read_text() != LIST.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        pins = colab_has(LIST.read_text())
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check"]
        subprocess.run([*pip, f"torch=={pins.pop('torch')}"], check=True)
        del pins["python"]
        lines = [f"{name}=={version}" for name, version in pins.items()]
        subprocess.run([*pip, "--no-deps", *lines], check=True)
        shutil.copy(LIST, done)
    return folder / "bin" / "python"


def run(notebook: Path, python: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a folder of its own.

    Args:
        notebook: the ``.ipynb``.
        python: the Python of its kernel.
        folder: where it runs.

    Returns:
        The notebook with its new outputs.

    Raises:
        CellExecutionError: if a cell raises.
    """
    read = nbformat.read(notebook, as_version=4)
    manager = KernelManager(kernel_name="colab")
    manager.kernel_spec_manager = _kernel_of(python)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("GRADBOOK_", "PYTHON"))}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    client = NotebookClient(
        read,
        km=manager,
        timeout=CELL_TIMEOUT_SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    read.metadata["kernelspec"] = {"name": "colab", "display_name": "Colab"}
    # Without the last an older kernel complains of newer Pythons, on this process's standard error.
    own = {"PATH": path, "VIRTUAL_ENV": str(python.parent.parent)}
    try:
        client.execute(env=keep | own | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    finally:
        # A client ends only the kernels of managers that it made.
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
    return read


def compared(ran: dict[str, Any], chapter: dict[str, Any]) -> int:
    """Compare the claims of a run with those of the chapter.

    Args:
        ran: the notebook that was run for Colab.
        chapter: the chapter's own notebook.

    Returns:
        How many claims held.

    Raises:
        CheckError: if they are not the same claims, or there is none.
    """
    found, wanted = (
        [(one["label"], one["statement"]) for one in outputs.claims(each)]
        for each in (ran, chapter)
    )
    if not wanted or found != wanted:
        raise CheckError(
            f"{len(found)} claims instead of {len(wanted)}: {set(wanted) ^ set(found)}"
        )
    return len(found)


def checked(name: str, base: Path) -> str:
    """Check one chapter's notebook.

    Args:
        name: the chapter.
        base: the Python that stands for Colab's.

    Returns:
        What to report: how many claims held, or which cell failed and why.
    """
    try:
        with _room() as room:
            notebook = Path(shutil.copy(BUILT / f"{name}.ipynb", room / "work"))
            for wheel in BUILT.glob("*.whl"):
                shutil.copy(wheel, room / "work")
            python = over(base, room / "environment")
            before = torches(python)
            ran = run(notebook, python, notebook.parent)
            after = torches(python)
            if before != after or len(before) != 1:
                raise CheckError(f"torch was {before} and is {after}")
            held = compared(ran, outputs.load(CHAPTERS / f"{name}.md"))
            return f"ok: {held} claims hold with torch {before[0]}"
    except FAULTS as error:
        return f"failed: {error}"


def _kernel_of(python: Path) -> KernelSpecManager:
    """A kernel is named in a folder; of ours there is no other, so that none can be taken for it."""
    folder = python.parent.parent / "kernels"
    (folder / "colab").mkdir(parents=True, exist_ok=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}", QUIET]
    spec = {"argv": argv, "display_name": "Colab", "language": "python"}
    (folder / "colab" / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)


FAULTS = (
    *(CellExecutionError, CellTimeoutError, DeadKernelError, CheckError),
    subprocess.CalledProcessError,
)


@contextmanager
def _room() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="colab-") as folder:
        (Path(folder) / "work").mkdir()
        yield Path(folder)


def torches(python: Path) -> list[str]:
    """List the versions of torch that a Python sees.

    Args:
        python: the Python.

    Returns:
        Its versions; more than one where one hides another.
    """
    command = [str(python), "-c", TORCHES]
    asked = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(asked.stdout)


def main(arguments: list[str]) -> int:
    """Check notebooks that ``make colab`` built.

    Args:
        arguments: the command line without the program's name.

    Returns:
        0 when all of them did what they did when they were checked.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--base", help="a Python that has what Colab has; else one is made")
    parser.add_argument("--python", default=sys.executable, help="what the base is made with")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    built = sorted(path.stem for path in BUILT.glob("*.ipynb"))
    names = options.names or built
    if not built:
        parser.error("there are no notebooks: make colab")
    if unknown := sorted(set(names) - set(built)):
        parser.error(f"no such notebook: {', '.join(unknown)}")
    base = Path(options.base) if options.base else made_base(options.python)
    failed = 0
    with ProcessPoolExecutor(options.workers) as pool:
        results = pool.map(checked, names, [base] * len(names))
        for name, said in zip(names, tqdm(results, total=len(names), disable=None), strict=True):
            print(f"{name}: {said}", flush=True)
            failed += not said.startswith("ok")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
