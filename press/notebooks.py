"""Run the chapters whose notebooks are stale.

``python -m press.notebooks [--check] [NAME ...]``
"""

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from press.digest import digest
from press.paths import CHAPTERS, ROOT, executed_chapters

STAMP = "gradbook"
CELL_TIMEOUT_SECONDS = 300
# The references are the CPU's, wherever they are made; a GPU runs them again.
REFERENCE = "cpu"
KERNEL_ENVIRONMENT = {
    # One thread, and warnings from our own modules are errors (press/ipython).
    "OMP_NUM_THREADS": "1",
    "IPYTHONDIR": str(ROOT / "press" / "ipython"),
    # A shell that names another backend would leave the page without its figures.
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    # A GPU convolves float32 with ten bits of precision unless it is told not to.
    "NVIDIA_TF32_OVERRIDE": "0",
}


def is_stale(page: Path) -> bool:
    """Tell whether a page's notebook is missing or was run from other text, modules or records.

    Args:
        page: the ``.md`` file.

    Returns:
        True where ``make notebooks`` would run it.
    """
    notebook = page.with_suffix(".ipynb")
    if not notebook.exists():
        return True
    stamp = json.loads(notebook.read_text())["metadata"].get(STAMP, {})
    return stamp.get("digest") != digest(page)


def run(page: Path, where: str = REFERENCE) -> nbformat.NotebookNode:
    """Run a page from top to bottom in a fresh kernel.

    Args:
        page: the ``.md`` file.
        where: the device that its tensors live on.

    Returns:
        The notebook with its outputs, stamped with what it ran on and how long it took.

    Raises:
        CellExecutionError: if a cell raises; a note of the error says which one. Nothing is
            written then.
    """
    # Before the run: what is edited while it runs was not run.
    summary = digest(page)
    notebook = jupytext.reads(page.read_text(), fmt="md:myst")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{page.stem}-{number}"
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(page.parent)}},
        # Over TCP the kernel would warn that its loopback sockets are not encrypted.
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    started = time.perf_counter()
    with client.setup_kernel(env=os.environ | KERNEL_ENVIRONMENT | {"GRADBOOK_DEVICE": where}):
        indices = range(len(notebook.cells))
        for index in tqdm(indices, desc=page.stem, unit="cell", disable=None, leave=False):
            _execute(client, index)
        seconds = time.perf_counter() - started
        peak = _peak_megabytes(client)
    stamp = _stamp(where, summary, seconds, peak)
    notebook.metadata = _metadata(notebook, stamp)
    return notebook


def _execute(client: NotebookClient, index: int) -> None:
    try:
        client.execute_cell(client.nb.cells[index], index)
    except Exception as error:
        # As nbval counts: among the code cells, from 0.
        before = client.nb.cells[:index]
        error.add_note(f"cell {sum(cell.cell_type == 'code' for cell in before)}")
        raise


def _stamp(where: str, summary: str, seconds: float, peak: int | None) -> dict:
    return {
        "digest": summary,
        "seconds": round(seconds, 1),
        "peak_mb": peak,
        "torch": torch.__version__.split("+")[0],
        "device": "CPU, one thread" if where == REFERENCE else where,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def _metadata(notebook: nbformat.NotebookNode, stamp: dict) -> dict:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    front = notebook.metadata.get("chapter", {})
    return {
        "kernelspec": kernel,
        "language_info": {"name": "python"},
        "chapter": front,
        STAMP: stamp,
    }


def _peak_megabytes(client: NotebookClient) -> int | None:
    """Linux alone tells the peak of another process; elsewhere the page leaves it out."""
    status = Path(f"/proc/{client.km.provisioner.process.pid}/status")
    if not status.exists():
        return None
    lines = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = next(lines, None)  # some sandboxes leave it out
    return None if peak is None else round(int(peak.split()[1]) / 1024)


def main(arguments: list[str]) -> int:
    """Run, or with ``--check`` name, the stale chapters.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="name what is stale, run nothing")
    parser.add_argument("names", nargs="*", help="chapters to run even if fresh")
    options = parser.parse_args(arguments)
    pages = [CHAPTERS / f"{name}.md" for name in options.names]
    if unknown := [page.stem for page in pages if not page.exists()]:
        parser.error(f"no such chapter: {', '.join(unknown)}")
    stale = [page for page in pages or executed_chapters() if is_stale(page)]
    if options.check:
        for page in stale:
            print(f"stale: {page.relative_to(ROOT)} (make notebooks runs it)")
        return int(bool(stale))
    for page in pages or stale:
        try:
            notebook = run(page)
        except CellExecutionError as error:
            print(f"{page.relative_to(ROOT)} stopped:\n{error}", file=sys.stderr)
            return 1
        nbformat.write(notebook, page.with_suffix(".ipynb"))
        seconds = notebook.metadata[STAMP]["seconds"]
        print(f"ran {page.relative_to(ROOT)} in {seconds} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
