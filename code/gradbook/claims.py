"""Claims: a statement of the text, measured, and held against a bound that can fail.

A claim compares a *measured* number with a *bound*. It raises when the bound is missed. When it
holds it shows one line of plain text that is the same on every device (what a notebook check
compares) beside an HTML box with the measured value (what a reader sees) and a record of both in
the output's metadata (what the ledger is built from).
"""

import html
import inspect
import linecache
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

METADATA_KEY = "gradbook"
_SIGNS = {"equals": "=", "at_least": "≥", "at_most": "≤"}


class ClaimError(AssertionError):
    """A statement of the book did not hold when it was run."""


@dataclass(frozen=True)
class Claim:
    """One statement that held: what was measured, and the bound it was held against.

    Attributes:
        label: the theorem, equation, exercise or marked sentence that states it.
        statement: the statement in words.
        kind: ``exact``, ``approximate``, ``statistical``, ``bound`` or ``argued``.
        measured: the measured value, or None where the claim is argued.
        stderr: the standard error of the measured value, or None.
        bound: the bound in words and numbers, or the argument.
    """

    label: str
    statement: str
    kind: str
    measured: float | None
    stderr: float | None
    bound: str

    def __repr__(self) -> str:
        verb = "argued" if self.kind == "argued" else "holds"
        return f"{self.label} {verb}: {self.statement}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        record = {key: _json(value) for key, value in asdict(self).items()}
        return {"text/plain": repr(self), "text/html": _box(self)}, {METADATA_KEY: record}


def claim(
    label: str,
    statement: str,
    measured: Any,
    *,
    equals: Any = None,
    at_least: Any = None,
    at_most: Any = None,
    stderr: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    z: float = 4.5,
) -> None:
    """Hold a measured value against a bound; show the claim when it holds.

    Exactly one of ``equals``, ``at_least`` and ``at_most`` states the bound. With ``stderr`` the
    measured value is an estimate and must be finite: ``equals`` then asks
    ``abs(measured - equals) <= z * stderr``, and ``at_least`` or ``at_most`` ask that the estimate
    clears the bound by z standard errors. Without it, ``equals`` asks
    ``abs(measured - equals) <= atol + rtol * abs(equals)``, with atol = rtol = 1e-10 unless either
    is given; an infinite ``equals`` is met by itself alone.

    Args:
        label: a label of the chapter: a theorem, equation, exercise, or a marked sentence.
        statement: what is claimed, in words that do not depend on the device.
        measured: a number or a tensor with one element.
        equals: the value it must equal.
        at_least: the value it must reach.
        at_most: the value it must not exceed.
        stderr: the standard error of ``measured``; positive and finite.
        rtol: relative tolerance; at 1e-7 or looser the claim is recorded as approximate.
        atol: absolute tolerance.
        z: standard errors allowed; 4.5 is missed by a correct estimate about once in 150 000 times.

    Raises:
        ClaimError: if the bound is missed, or ``measured`` is not a number.
        ValueError: if the claim is not well posed: no bound, two bounds, a bound that cannot fail,
            or a label or statement that is not one line of words.
    """
    bounds = {"equals": equals, "at_least": at_least, "at_most": at_most}
    given = {name: _number(name, value) for name, value in bounds.items() if value is not None}
    if len(given) != 1:
        raise ValueError("state exactly one of equals, at_least, at_most")
    name, target = next(iter(given.items()))
    value = _number("measured", measured)
    error = None if stderr is None else _number("stderr", stderr)
    _check_words(label, statement)
    _check_posed(name, target, error, rtol, atol, z)
    if error is not None:
        kind, (holds, bound) = "statistical", _statistical(name, value, target, error, z)
    elif name == "equals":
        kind, (holds, bound) = _exact(value, target, rtol, atol)
    else:
        kind, (holds, bound) = "bound", _one_sided(name, value, target)
    if not holds:
        raise ClaimError(_failure(label, statement, value, target, error, bound))
    _publish(Claim(label, statement, kind, value, error, bound))


def argued(label: str, statement: str, reason: str) -> None:
    """Record a statement that no run can settle, with the argument for it.

    Args:
        label: the label of the theorem or sentence.
        statement: what is claimed.
        reason: why it holds, and why it cannot be measured.

    Raises:
        ValueError: if the reason is empty, or the label or statement is not one line of words.
    """
    _check_words(label, statement)
    if not reason.strip():
        raise ValueError("reason: an argued claim must give its argument")
    _publish(Claim(label, statement, "argued", None, None, reason))


def _number(name: str, value: Any) -> float:
    try:
        # item() and not float(): torch warns when float() meets a tensor that requires a gradient.
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, str):
            raise TypeError("a string is not a measurement")
        return float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name}: must be a number or hold one element, got {value!r}") from error


def _check_words(label: str, statement: str) -> None:
    """A claim's plain text is one line that starts with its label."""
    for name, words in (("label", label), ("statement", statement)):
        if len(words.splitlines()) != 1 or not words.strip():
            raise ValueError(f"{name}: must be one line of words, got {words!r}")


def _check_posed(
    name: str,
    target: float,
    stderr: float | None,
    rtol: float | None,
    atol: float | None,
    z: float,
) -> None:
    """Refuse a claim that could not fail, or that mixes two kinds of tolerance."""
    if math.isnan(target):
        raise ValueError(f"{name}: is not a number")
    if (name, target) in {("at_least", -math.inf), ("at_most", math.inf)}:
        raise ValueError(f"{name}={target}: this bound cannot fail")
    if stderr is not None and not (0 < stderr < math.inf):
        raise ValueError(f"stderr: must be positive and finite, got {stderr}")
    if not 0 < z < math.inf:
        raise ValueError(f"z: must be positive and finite, got {z}")
    tolerances = [t for t in (rtol, atol) if t is not None]
    if tolerances and (stderr is not None or name != "equals"):
        raise ValueError("rtol and atol go with equals, and not with stderr")
    if any(not 0 <= t < math.inf for t in tolerances):
        raise ValueError("rtol and atol must be finite and not negative")


def _statistical(
    name: str, value: float, target: float, stderr: float, z: float
) -> tuple[bool, str]:
    word = "within" if name == "equals" else "by"
    bound = f"{_SIGNS[name]} {_show(target)} {word} {z:g} standard errors of {stderr:.2g}"
    if name == "equals":
        holds = abs(value - target) <= z * stderr
    elif name == "at_least":
        holds = value - z * stderr >= target
    else:
        holds = value + z * stderr <= target
    # A diverged estimate would clear any one-sided bound.
    return holds and math.isfinite(value), bound


def _exact(
    value: float, target: float, rtol: float | None, atol: float | None
) -> tuple[str, tuple[bool, str]]:
    if rtol is None and atol is None:
        rtol = atol = 1e-10
    rtol, atol = rtol or 0.0, atol or 0.0
    # An infinite target would stretch a relative tolerance over every number.
    near = math.isfinite(target) and abs(value - target) <= atol + rtol * abs(target)
    holds = value == target or near
    parts = [f"{t:g} {word}" for t, word in ((rtol, "relative"), (atol, "absolute")) if t]
    # Two equal tolerances are the default of every exact claim: said once.
    within = f"{rtol:g}" if rtol == atol else " + ".join(parts)
    bound = f"= {_show(target)} within {within}"
    return ("approximate" if max(rtol, atol) >= 1e-7 else "exact"), (holds, bound)


def _one_sided(name: str, value: float, target: float) -> tuple[bool, str]:
    holds = value >= target if name == "at_least" else value <= target
    return holds, f"{_SIGNS[name]} {_show(target)}"


def _show(value: float) -> str:
    return f"{value:.6g}"


def _failure(
    label: str,
    statement: str,
    value: float,
    target: float,
    stderr: float | None,
    bound: str,
) -> str:
    # Six digits show a bound; beside 1e-10 only the distance tells the two numbers apart.
    distance = abs(value - target)
    spread = "" if stderr is None else f" ± {stderr:.2g}"
    units = "" if stderr is None else f" ({distance / stderr:.2g} standard errors)"
    return (
        f"claim {label} does not hold: {statement}\n"
        f"  measured  {value:.10g}{spread}\n"
        f"  bound     {bound}\n"
        f"  distance  {distance:.2g}{units}\n"
        f"  where     {_where()}"
    )


def _where() -> str:
    """Name the line outside this module that made the claim."""
    frame = inspect.currentframe()
    while frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    place = _cell(frame.f_globals) or os.path.basename(frame.f_code.co_filename)
    return f"{place}, line {frame.f_lineno}: {line}"


def _cell(namespace: dict) -> str:
    inputs = namespace.get("In")
    return f"cell {len(inputs) - 1}" if isinstance(inputs, list) else ""


def _json(value: Any) -> Any:
    """JSON has no infinities: write them as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _box(result: Claim) -> str:
    if result.measured is None:
        figures = f'<span class="claim-bound">{html.escape(result.bound)}</span>'
    else:
        spread = "" if result.stderr is None else f" ± {result.stderr:.2g}"
        figures = (
            f'<b class="claim-measured">{html.escape(_show(result.measured) + spread)}</b> '
            f'<span class="claim-bound">{html.escape(result.bound)}</span>'
        )
    mark = "∴" if result.kind == "argued" else "✓"
    return (
        # The style is for notebooks outside the site, which have no sheet of ours.
        f'<div class="claim claim-{result.kind}" style="border-left:3px solid #1a7f5a;'
        f'padding:.2em .8em;margin:.3em 0"><span class="claim-mark">{mark}</span> '
        f'<span class="claim-statement">{html.escape(result.statement)}</span> '
        f'<span class="claim-figures" style="margin-left:1em">{figures}</span></div>'
    )


def _publish(result: Claim) -> None:
    """Show the claim in a notebook; elsewhere, in a test or a script, it has done its work."""
    ipython = sys.modules.get("IPython")
    shell: Callable[[], Any] = getattr(ipython, "get_ipython", lambda: None)
    if shell() is not None:
        ipython.display.display(result)
