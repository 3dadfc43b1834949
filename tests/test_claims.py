"""The claims themselves: if a claim could not fail, no other check of the book would count."""

import json
import math
import re
import warnings
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from gradbook import claims
from gradbook.claims import METADATA_KEY, Claim, ClaimError, argued, claim

finite = st.floats(-1e6, 1e6)


@pytest.fixture
def shown(monkeypatch):
    """Collect what claims show, as in a notebook."""
    found = []
    ipython = SimpleNamespace(
        get_ipython=lambda: object(), display=SimpleNamespace(display=found.append)
    )
    monkeypatch.setitem(claims.sys.modules, "IPython", ipython)
    return found


def holds(measured, **bound):
    try:
        claim("eq-x", "x is right", measured, **bound)
    except ClaimError:
        return False
    return True


# Deterministic claims


def test_equals_defaults_to_both_tolerances_at_1e_10(shown):
    claim("eq-x", "x is right", 1 + 1.9e-10, equals=1)
    assert shown == [
        Claim(
            "eq-x",
            "x is right",
            "exact",
            1 + 1.9e-10,
            None,
            "= 1 within 1e-10",
        )
    ]
    assert not holds(1 + 2.1e-10, equals=1)
    assert holds(0.9e-10, equals=0)
    assert not holds(1.1e-10, equals=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_relative_tolerance_scales_with_the_size_of_the_target(sign):
    assert holds(sign * 1009, equals=sign * 1000, rtol=0.01)
    assert holds(sign * 991, equals=sign * 1000, rtol=0.01)
    assert not holds(sign * 1011, equals=sign * 1000, rtol=0.01)
    assert not holds(sign * 989, equals=sign * 1000, rtol=0.01)
    assert not holds(1e-9, equals=0, rtol=0.01)


def test_absolute_tolerance_does_not_scale():
    assert holds(1000.5, equals=1000, atol=0.5)
    assert not holds(1000.75, equals=1000, atol=0.5)
    assert not holds(999.25, equals=1000, atol=0.5)


def test_one_tolerance_replaces_both_defaults():
    assert not holds(1 + 1e-10, equals=1, atol=1e-12)
    assert not holds(1 + 1e-10, equals=1, rtol=1e-12)


def test_zero_tolerance_asks_for_the_same_number(shown):
    claim("eq-x", "x is right", 0.5, equals=0.5, rtol=0, atol=0)
    assert shown[0].bound == "= 0.5 within 0"
    assert not holds(math.nextafter(0.5, 1), equals=0.5, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tolerance", "kind"),
    [
        ({"rtol": 9e-8}, "exact"),
        ({"rtol": 1e-7}, "approximate"),
        ({"atol": 1e-7}, "approximate"),
        ({"atol": 9e-8, "rtol": 0}, "exact"),
    ],
)
def test_a_loose_tolerance_is_recorded_as_approximate(shown, tolerance, kind):
    claim("eq-x", "x is right", 2, equals=2, **tolerance)
    assert shown[0].kind == kind


def test_the_bound_shows_the_tolerance_that_was_used(shown):
    claim("eq-x", "x is right", 2, equals=2, rtol=1.5e-6, atol=0.00025)
    assert shown[0].bound == "= 2 within 1.5e-06 relative + 0.00025 absolute"


def test_bounds_include_their_end(shown):
    claim("thm-x", "x is large", 3, at_least=3)
    claim("thm-x", "x is small", 3, at_most=3)
    assert [(c.kind, c.bound, c.measured, c.stderr) for c in shown] == [
        ("bound", "≥ 3", 3.0, None),
        ("bound", "≤ 3", 3.0, None),
    ]
    assert not holds(math.nextafter(3, 0), at_least=3)
    assert not holds(math.nextafter(3, 4), at_most=3)
    assert holds(4, at_least=3)
    assert holds(2, at_most=3)


@given(finite, finite)
def test_at_least_and_at_most_agree_with_the_order_of_the_numbers(measured, bound):
    assert holds(measured, at_least=bound) == (measured >= bound)
    assert holds(measured, at_most=bound) == (measured <= bound)


# Statistical claims


def test_an_estimate_equals_within_z_standard_errors(shown):
    claim("thm-x", "the mean is 1", 1.5, equals=1, stderr=0.125, z=4)
    assert shown == [
        Claim(
            "thm-x",
            "the mean is 1",
            "statistical",
            1.5,
            0.125,
            "= 1 within 4 standard errors of 0.12",
        )
    ]
    assert holds(0.5, equals=1, stderr=0.125, z=4)
    assert not holds(1.51, equals=1, stderr=0.125, z=4)
    assert not holds(0.49, equals=1, stderr=0.125, z=4)


def test_the_default_z_is_four_and_a_half():
    assert holds(4.5, equals=0, stderr=1)
    assert not holds(4.51, equals=0, stderr=1)
    assert math.erfc(4.5 / math.sqrt(2)) == pytest.approx(1 / 150_000, rel=0.05)


def test_an_estimate_clears_a_one_sided_bound_by_z_standard_errors(shown):
    claim("thm-x", "x is large", 3, at_least=1, stderr=0.5, z=4)
    claim("thm-x", "x is small", -1, at_most=1, stderr=0.5, z=4)
    assert [(c.kind, c.bound) for c in shown] == [
        ("statistical", "≥ 1 by 4 standard errors of 0.5"),
        ("statistical", "≤ 1 by 4 standard errors of 0.5"),
    ]
    assert not holds(2.99, at_least=1, stderr=0.5, z=4)
    assert not holds(-0.99, at_most=1, stderr=0.5, z=4)


@given(finite, finite, st.floats(1e-3, 1e3), st.floats(0.5, 10))
def test_a_larger_standard_error_never_helps_a_one_sided_claim(measured, bound, stderr, z):
    if holds(measured, at_least=bound, stderr=stderr, z=z):
        assert holds(measured, at_least=bound)
        assert holds(measured, at_least=bound, stderr=stderr / 2, z=z)
    if holds(measured, at_most=bound, stderr=stderr, z=z):
        assert holds(measured, at_most=bound)
        assert holds(measured, at_most=bound, stderr=stderr / 2, z=z)


# What is not a number


@pytest.mark.parametrize(
    "bound",
    [
        {"equals": 0},
        {"equals": 0, "atol": 1e9},
        {"equals": math.inf},
        {"at_least": 0},
        {"at_most": 0},
        {"equals": 0, "stderr": 1},
        {"at_least": 0, "stderr": 1},
        {"at_most": 0, "stderr": 1},
    ],
)
def test_nan_holds_nothing(bound):
    with pytest.raises(ClaimError, match="measured  nan"):
        claim("eq-x", "x is right", math.nan, **bound)


def test_infinity_equals_itself_and_no_other_number(shown):
    claim("eq-x", "the variance is infinite", math.inf, equals=math.inf)
    assert (shown[0].kind, shown[0].measured) == ("exact", math.inf)
    for measured in (0, 1e308, -math.inf):
        assert not holds(measured, equals=math.inf)
        assert not holds(-measured, equals=-math.inf)
    assert not holds(math.inf, equals=1e308)


def test_infinity_is_larger_than_any_bound():
    assert holds(math.inf, at_least=1e308)
    assert holds(-math.inf, at_most=-1e308)
    assert not holds(math.inf, at_most=1e308)
    assert not holds(1e308, at_least=math.inf)


@pytest.mark.parametrize("bound", [{"at_least": 0}, {"at_most": 0}, {"equals": 0}])
@pytest.mark.parametrize("measured", [math.inf, -math.inf])
def test_a_diverged_estimate_clears_no_statistical_bound(bound, measured):
    assert not holds(measured, stderr=1.0, **bound)


@pytest.mark.parametrize(
    "number",
    [
        2,
        2.0,
        np.float32(2),
        np.array([[2]]),
        torch.tensor(2),
        torch.tensor([[2.0]], dtype=torch.float16),
    ],
)
def test_whatever_holds_one_number_is_measured(shown, number):
    claim("eq-x", "x is right", number, equals=number)
    assert shown[0].measured == 2.0
    assert type(shown[0].measured) is float


def test_a_tensor_that_requires_a_gradient_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert holds(torch.tensor(2.0, requires_grad=True), equals=2)


NOT_ONE_NUMBER = [
    "2",
    2j,
    [2.0],
    torch.ones(2),
    torch.ones(0),
    np.ones(2),
    torch.tensor(2j),
    10**400,
]


@pytest.mark.parametrize("value", NOT_ONE_NUMBER)
@pytest.mark.parametrize("name", ["measured", "at_least", "stderr"])
def test_what_is_not_one_number_is_refused_by_name(name, value):
    arguments = {"measured": 1.0, "at_least": 0.0, "stderr": 0.1} | {name: value}
    with pytest.raises(ValueError, match=rf"^{name}: must be a number or hold one element, got "):
        claim("eq-x", "x is right", **arguments)


def test_nothing_is_not_measured():
    with pytest.raises(ValueError, match="^measured: .* got None"):
        claim("eq-x", "x is right", None, equals=1)


# Claims that are not well posed


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"equals": 1, "at_least": 0},
        {"at_least": 0, "at_most": 2},
        {"equals": 1, "at_least": 0, "at_most": 2},
    ],
)
def test_a_claim_has_exactly_one_bound(bounds):
    with pytest.raises(ValueError, match="exactly one of equals, at_least, at_most"):
        claim("eq-x", "x is right", 1, **bounds)


@pytest.mark.parametrize("name", ["equals", "at_least", "at_most"])
def test_a_bound_is_a_number(name):
    with pytest.raises(ValueError, match=f"^{name}: is not a number"):
        claim("eq-x", "x is right", 1, **{name: math.nan})


@pytest.mark.parametrize("stderr", [{}, {"stderr": 1.0}])
@pytest.mark.parametrize("bound", [{"at_least": -math.inf}, {"at_most": math.inf}])
def test_a_bound_that_cannot_fail_is_refused(bound, stderr):
    with pytest.raises(ValueError, match=r"^at_\w+=-?inf: this bound cannot fail"):
        claim("eq-x", "x is right", 1, **bound, **stderr)


@pytest.mark.parametrize("stderr", [0, -1, math.inf, math.nan])
def test_a_standard_error_is_positive_and_finite(stderr):
    with pytest.raises(ValueError, match="^stderr: must be positive and finite"):
        claim("eq-x", "x is right", 1, equals=1, stderr=stderr)


@pytest.mark.parametrize("z", [0, -1, math.inf, math.nan])
def test_z_is_positive_and_finite(z):
    with pytest.raises(ValueError, match="^z: must be positive and finite"):
        claim("eq-x", "x is right", 1, equals=1, stderr=1, z=z)


@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
@pytest.mark.parametrize("bound", [{"at_least": 0}, {"at_most": 2}, {"equals": 1, "stderr": 1}])
def test_a_tolerance_goes_with_a_deterministic_equality(tolerance, bound):
    with pytest.raises(ValueError, match="go with equals, and not with stderr"):
        claim("eq-x", "x is right", 1, **bound, **{tolerance: 0.1})


@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
@pytest.mark.parametrize("size", [-1e-9, math.inf, math.nan])
def test_a_tolerance_is_finite_and_not_negative(tolerance, size):
    with pytest.raises(ValueError, match="finite and not negative"):
        claim("eq-x", "x is right", 1, equals=1, **{tolerance: size})


@pytest.mark.parametrize("words", ["", " ", "two\nlines"])
def test_label_and_statement_are_one_line_of_words(words):
    with pytest.raises(ValueError, match="^label: must be one line"):
        claim(words, "x is right", 1, equals=1)
    with pytest.raises(ValueError, match="^statement: must be one line"):
        claim("eq-x", words, 1, equals=1)
    with pytest.raises(ValueError, match="^statement: must be one line"):
        argued("eq-x", words, "because")


# Argued claims


def test_an_argued_claim_keeps_its_reason(shown):
    argued("thm-x", "x tends to 0", "no run reaches the limit")
    assert shown == [
        Claim("thm-x", "x tends to 0", "argued", None, None, "no run reaches the limit")
    ]
    assert repr(shown[0]) == "thm-x argued: x tends to 0"


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_an_argued_claim_without_a_reason_is_refused(reason):
    with pytest.raises(ValueError, match="^reason: "):
        argued("thm-x", "x tends to 0", reason)


# What a failure says


def failure(measured, **bound):
    with pytest.raises(ClaimError) as caught:
        claim("thm-x", "x is right", measured, **bound)
    return str(caught.value).splitlines()


def test_a_failure_says_what_was_claimed_measured_bound_and_where():
    lines = failure(1.5, equals=1, rtol=0.1)
    assert lines[:4] == [
        "claim thm-x does not hold: x is right",
        "  measured  1.5",
        "  bound     = 1 within 0.1 relative",
        "  distance  0.5",
    ]
    # The line of this file that calls claim, not a line of the module.
    where = re.fullmatch(r"  where     test_claims\.py, line \d+: (.*)", lines[4])
    assert where[1] == 'claim("thm-x", "x is right", measured, **bound)'
    assert len(lines) == 5


def test_a_statistical_failure_counts_the_standard_errors():
    assert failure(2, equals=1, stderr=0.125)[1:4] == [
        "  measured  2 ± 0.12",
        "  bound     = 1 within 4.5 standard errors of 0.12",
        "  distance  1 (8 standard errors)",
    ]
    assert failure(1.25, at_least=1, stderr=0.125)[2:4] == [
        "  bound     ≥ 1 by 4.5 standard errors of 0.12",
        "  distance  0.25 (2 standard errors)",
    ]


def test_a_failure_by_less_than_the_digits_shown_is_still_readable():
    assert failure(math.pi + 5e-10, equals=math.pi, rtol=0, atol=1e-12)[3] == "  distance  5e-10"


def test_where_names_code_without_a_source_line():
    # A name of its own: from Python 3.13 on, lines of <string> are those of a program given by -c.
    code = compile("claim('thm-x', 'x is right', 1, equals=2)", "<nowhere>", "exec")
    with pytest.raises(ClaimError, match=r"where     <nowhere>, line 1: $"):
        exec(code, {"claim": claim})


# What a reader and a notebook check see


CLAIM = Claim("thm-x", "x is right", "exact", 1.25, None, "= 1.25 within 0")


def test_plain_text_does_not_depend_on_what_was_measured():
    data, _ = CLAIM._repr_mimebundle_()
    assert data["text/plain"] == repr(CLAIM) == "thm-x holds: x is right"
    other = replace(CLAIM, measured=-7.5, stderr=0.1, bound="≤ 3")
    assert other._repr_mimebundle_()[0]["text/plain"] == data["text/plain"]
    assert other._repr_mimebundle_()[0]["text/html"] != data["text/html"]


def test_metadata_record_the_claim():
    _, metadata = CLAIM._repr_mimebundle_(include=None, exclude=None)
    assert metadata == {
        METADATA_KEY: {
            "label": "thm-x",
            "statement": "x is right",
            "kind": "exact",
            "measured": 1.25,
            "stderr": None,
            "bound": "= 1.25 within 0",
        }
    }
    assert METADATA_KEY == "gradbook"


@pytest.mark.parametrize(("value", "word"), [(math.inf, "inf"), (-math.inf, "-inf")])
def test_metadata_write_infinities_as_words(value, word):
    _, metadata = replace(CLAIM, measured=value)._repr_mimebundle_()
    assert json.loads(json.dumps(metadata, allow_nan=False))[METADATA_KEY]["measured"] == word


def test_the_box_shows_the_measured_value_beside_its_bound():
    box = replace(CLAIM, measured=1 / 3, stderr=0.0123, kind="statistical")._repr_mimebundle_()[0][
        "text/html"
    ]
    assert box.startswith('<div class="claim claim-statistical"')
    assert '<span class="claim-mark">✓</span>' in box
    assert '<span class="claim-statement">x is right</span>' in box
    assert '<b class="claim-measured">0.333333 ± 0.012</b>' in box
    assert '<span class="claim-bound">= 1.25 within 0</span>' in box


def test_the_box_of_an_argued_claim_shows_its_reason():
    box = Claim("thm-x", "x", "argued", None, None, "a limit")._repr_mimebundle_()[0]["text/html"]
    assert '<span class="claim-mark">∴</span>' in box
    assert '<span class="claim-bound">a limit</span>' in box
    assert "claim-measured" not in box


@pytest.mark.parametrize("field", ["statement", "bound"])
def test_the_box_escapes_words(field):
    box = replace(CLAIM, **{field: "<b> & x"})._repr_mimebundle_()[0]["text/html"]
    assert "&lt;b&gt; &amp; x" in box
    assert "<b>" not in box


def test_the_box_escapes_the_reason_of_an_argued_claim():
    claimed = Claim("thm-x", "x", "argued", None, None, "<i>")
    assert "&lt;i&gt;" in claimed._repr_mimebundle_()[0]["text/html"]


def test_outside_a_notebook_a_claim_shows_nothing(monkeypatch, capsys):
    monkeypatch.delitem(claims.sys.modules, "IPython", raising=False)
    claim("eq-x", "x is right", 1, equals=1)
    shown = []
    ipython = SimpleNamespace(
        get_ipython=lambda: None, display=SimpleNamespace(display=shown.append)
    )
    monkeypatch.setitem(claims.sys.modules, "IPython", ipython)
    claim("eq-x", "x is right", 1, equals=1)
    assert shown == []
    assert capsys.readouterr().out == ""


def test_a_failed_claim_shows_nothing(shown):
    assert not holds(1, equals=2)
    assert shown == []


# In a real kernel


@pytest.fixture(scope="module")
def executed():
    """Run a notebook of a claim that holds, an argued one, and one that fails."""
    cells = [
        "from gradbook.claims import argued, claim",
        'claim("thm-x", "x < 2 & right", float("inf"), at_least=1)',
        'argued("thm-y", "y tends to 0", "a limit")',
        'x = 3\nclaim("thm-z", "z is right", x, equals=2)',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    with pytest.raises(CellExecutionError):
        client.execute()
    return [cell.outputs for cell in notebook.cells]


def test_in_a_kernel_a_claim_is_text_box_and_record(executed):
    assert executed[0] == []
    (output,) = executed[1]
    assert output["output_type"] == "display_data"
    assert set(output["data"]) == {"text/plain", "text/html"}
    assert output["data"]["text/plain"] == "thm-x holds: x < 2 & right"
    assert "x &lt; 2 &amp; right" in output["data"]["text/html"]
    assert output["metadata"][METADATA_KEY]["measured"] == "inf"
    assert json.dumps(output, allow_nan=False)


def test_in_a_kernel_an_argued_claim_is_shown_too(executed):
    (output,) = executed[2]
    assert output["data"]["text/plain"] == "thm-y argued: y tends to 0"
    assert output["metadata"][METADATA_KEY]["kind"] == "argued"


def test_in_a_kernel_a_failure_names_its_cell(executed):
    (output,) = executed[3]
    assert (output["output_type"], output["ename"]) == ("error", "ClaimError")
    assert output["evalue"].splitlines()[0] == "claim thm-z does not hold: z is right"
    assert output["evalue"].splitlines()[-1] == (
        '  where     cell 4, line 2: claim("thm-z", "z is right", x, equals=2)'
    )
