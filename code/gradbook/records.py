"""Records: what an experiment too long for a page found, kept in ``records/NAME.json``.

``make records`` writes them. A page draws a record, runs one short seed of the same experiment, and
claims that this seed lies in the record's spread.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Only an installed wheel has this folder: pyproject.toml puts the repository's records there.
PACKAGED = Path(__file__).parent / "packaged_records"


class Spread(NamedTuple):
    """What a record's seeds say of one more seed: the value to expect, and its standard error."""

    mean: float
    stderr: float


def load(name: str) -> dict[str, Any]:
    """Read a record from ``records/`` of the current folder, the nearest one above it, or the package.

    The package holds the records as they were when it was built, so that a page can be read elsewhere.

    Args:
        name: the experiment's name.

    Returns:
        The record, with keys ``command``, ``digests``, ``reference``, and ``runs`` by device. The
        reference and each run hold ``results``, ``seconds``, ``date``, ``device``, ``machine`` and
        ``versions``; the results of a run are kept by seed.

    Raises:
        FileNotFoundError: if there is no such record.
        ValueError: if the file is not JSON.
    """
    here = Path.cwd()
    folders = [folder / "records" for folder in (here, *here.parents)]
    for folder in (*folders, PACKAGED):
        path = folder / f"{name}.json"
        if path.is_file():
            try:
                return json.loads(path.read_text())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is damaged: run `make records`") from error
    raise FileNotFoundError(f"no records/{name}.json here or above: run `make records`")


def across_seeds(record: dict[str, Any], *keys: str, device: str = "cpu") -> Tensor:
    """Collect one quantity over the seeds of a run.

    Args:
        record: from :func:`load`.
        keys: the way to the quantity in one seed's results.
        device: the run to read.

    Returns:
        float64, [seeds, ...]; NaN where the record says null, that is, where a number overflowed.

    Raises:
        KeyError: if the record has no such run or quantity.
    """
    rows = []
    for result in record["runs"][device]["results"].values():
        for key in keys:
            result = result[key]
        rows.append(_numbers(result))
    return torch.tensor(rows, dtype=torch.float64)


def spread(values: Tensor) -> Spread:
    """Say where one more seed should fall.

    Args:
        values: one number per seed, [n] with n at least 2.

    Returns:
        The mean, and the standard error of one further value about it, sd * sqrt(1 + 1/n).

    Raises:
        ValueError: if there are fewer than two values, or one is not finite.
    """
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError("values: must be [n], n at least 2, and finite")
    return Spread(values.mean().item(), values.std().item() * math.sqrt(1 + 1 / len(values)))


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value
