"""A prefix's limit: its law, three of four by search and by hand, the least error, and fits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar

from gradbook.peft import colour_task, prefix_limits
from gradbook.peft.grouped_attention import prefix_share

GAPS = st.floats(-6, 6)
TOKENS, TARGETS = colour_task.contents(device="cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def share_of(gap):
    return torch.sigmoid(double(gap))


def layer_of(gap):
    return colour_task.colour_layer(gap, device="cpu")


def mean_squared_error(answered):
    return (answered - TARGETS).square().mean(-1)


def close(ours, theirs, bound=1e-12):
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


def scale_and_shift(layer, keys, values):
    """s and c of a prefix, from the share that it draws and its own softmax."""
    q = (layer.w_q @ layer.asker)[None, None]
    share = prefix_share(q, keys[None], TOKENS[:1] @ layer.w_k.T)[0, 0]
    inner = (keys @ q[0, 0] / 2**0.5).softmax(0)
    return 1 - share, share * (inner @ values[:, 0])


@settings(max_examples=25)
@given(GAPS, st.integers(1, 5), st.integers(0, 1000))
def test_any_prefix_answers_by_the_law(gap, n, seed):
    layer, keys, values = layer_of(gap), normal(n, 2, seed=seed), normal(n, 1, seed=seed + 1)
    law = prefix_limits.prefixed_law(share_of(gap), *scale_and_shift(layer, keys, values))
    close(colour_task.with_prefix(layer, TOKENS, keys, values), law)


@settings(max_examples=25)
@given(GAPS, st.integers(2, 5), st.integers(0, 1000))
def test_a_prefix_of_any_length_is_one_of_length_one(gap, n, seed):
    layer, keys, values = layer_of(gap), normal(n, 2, seed=seed), normal(n, 1, seed=seed + 1)
    drawn = keys[:, 0] - keys[:, 1]
    key = double([[0.5, -0.5]]) * drawn.logsumexp(0)
    value = drawn.softmax(0) @ values
    one = colour_task.with_prefix(layer, TOKENS, key, value[None])
    close(one, colour_task.with_prefix(layer, TOKENS, keys, values))


def test_the_law_broadcasts():
    a = double([0.6, 0.9])
    scale, shift = double([[0.1], [0.5], [1.0]]), double(0.25)
    law = prefix_limits.prefixed_law(a, scale, shift)
    assert law.shape == (3, 2, 4)
    for i in range(3):
        for j in range(2):
            s, r = scale[i, 0].item(), a[j].item()
            expected = [s + 0.25, s * (2 * r - 1) + 0.25, s * (1 - 2 * r) + 0.25, 0.25 - s]
            close(law[i, j], expected)


def grid_counts(a):
    """What is right on a grid of scales above 0 and shifts."""
    scale = torch.linspace(0.02, 1, 50, dtype=torch.float64)[:, None]
    shift = torch.linspace(-1.5, 1.5, 1201, dtype=torch.float64)
    return colour_task.right(prefix_limits.prefixed_law(a, scale, shift), TARGETS)


@pytest.mark.parametrize("gap", [0.0, 0.1, 1.0, 3.0])
def test_three_of_four_is_the_most_on_a_grid_of_prefixes(gap):
    a = share_of(gap)
    assert grid_counts(a).max() == prefix_limits.most_right(a.item()) == 3


@pytest.mark.parametrize("gap", [-0.1, -1.0, -3.0])
def test_four_of_four_where_the_layer_prefers_blue(gap):
    a = share_of(gap)
    assert grid_counts(a).max() == prefix_limits.most_right(a.item()) == 4


def test_the_limit_starts_where_both_share_alike():
    below, above = math.nextafter(0.5, 0), math.nextafter(0.5, 1)
    found = [prefix_limits.most_right(a) for a in (0.0, below, 0.5, above, 0.999)]
    assert found == [4, 4, 3, 3, 3]


@settings(max_examples=25)
@given(st.floats(0.0, 1.0))
def test_all_four_are_right_for_some_scale_and_shift_if_a_linear_program_says_so(a):
    # Largest margin m with target (s m_i + c) >= m and s <= 1; the margin is 0 if no pair works.
    rows = [[-v * (a * u + (1 - a) * v), -v, 1] for u, v in [(1, 1), (1, -1), (-1, 1), (-1, -1)]]
    found = linprog([0, 0, -1], rows, [0] * 4, bounds=[(0, 1), (None, None), (0, None)])
    # The solver lets a constraint be missed by 1e-7; below 1 / 2 the margin is 1 - 2 a at least.
    if abs(a - 0.5) > 1e-3:
        assert (prefix_limits.most_right(a) == 4) == (-found.fun > 1e-6)


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0, 10.0])
def test_three_are_reached(gap):
    layer, a = layer_of(gap), share_of(gap)
    key, value = prefix_limits.three_right(layer)
    scale, shift = scale_and_shift(layer, key, value)
    close(torch.stack([scale, shift]), torch.stack([double(0.5), -a / 2]))
    answered = colour_task.with_prefix(layer, TOKENS, key, value)
    assert answered.sign().tolist() == [1, -1, -1, -1]
    assert colour_task.right(answered, TARGETS) == 3


def test_changed_values_share_the_limit():
    """LoRA of W_v alone gives s (a u + (1 - a) v) + c too, with s of any sign."""
    layer, most = layer_of(1.0), 0
    for seed in range(200):
        change = 3 * normal(1, 1, seed=seed) @ normal(1, 4, seed=1000 + seed)
        answered = colour_task.answers(layer._replace(w_v=layer.w_v + change), TOKENS)
        most = max(most, colour_task.right(answered, TARGETS).item())
        assert mean_squared_error(answered) >= prefix_limits.least_error(share_of(1.0)) - 1e-12
    assert most == 3


@pytest.mark.parametrize("gap", [0.5, 2.0, 20.0])
def test_a_rank_one_change_of_the_query_answers_all_four_too(gap):
    layer = layer_of(gap)
    change = -2 * torch.outer(layer.w_q @ layer.asker, layer.asker)
    answered = colour_task.answers(layer._replace(w_q=layer.w_q + change), TOKENS)
    assert colour_task.right(answered, TARGETS) == 4


@settings(max_examples=25)
@given(st.floats(0, 1))
def test_the_least_error_is_that_of_a_search_over_the_scale(a):
    share = double(a)

    def error(scale, shift=0.0):
        law = prefix_limits.prefixed_law(share, double(scale), double(shift))
        return mean_squared_error(law).item()

    least = prefix_limits.least_error(share)
    found = minimize_scalar(error, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    # The search stays 1e-9 away from its bounds, and the slope there is at most 4.
    close(least, found.fun, 1e-8)
    scale = prefix_limits.best_scale(share).item()
    close(least, error(scale))
    # The error is quadratic in the shift, with its vertex at 0.
    close(least, error(scale, 0.3) - 0.09)
    close(least, error(scale, -0.3) - 0.09)


@settings(max_examples=25)
@given(st.floats(0, 12))
def test_closed_forms_in_the_gap(gap):
    a, e = share_of(gap), math.exp(-gap)
    close(prefix_limits.least_error(a), 1 / (1 + e * e))
    close(prefix_limits.best_scale(a), e * (1 + e) / (1 + e * e))


@settings(max_examples=25)
@given(st.floats(-12, 0))
def test_where_blue_is_preferred_the_frozen_layer_is_the_best(gap):
    a = share_of(gap)
    close(prefix_limits.best_scale(a), 1.0)
    frozen = mean_squared_error(colour_task.answers(layer_of(gap), TOKENS))
    close(prefix_limits.least_error(a), frozen)
    close(frozen, 2 * a**2)


@settings(max_examples=25)
@given(GAPS, st.integers(1, 4), st.integers(0, 1000))
def test_no_prefix_is_below_the_least_error_or_above_the_most_right(gap, n, seed):
    keys, values = 3 * normal(n, 2, seed=seed), normal(n, 1, seed=seed + 1)
    answered = colour_task.with_prefix(layer_of(gap), TOKENS, keys, values)
    a = share_of(gap)
    assert mean_squared_error(answered) >= prefix_limits.least_error(a) - 1e-12
    assert colour_task.right(answered, TARGETS) <= prefix_limits.most_right(a.item())


@pytest.mark.parametrize("length", [1, 4])
def test_descent_on_a_prefix_ends_at_the_least_error_and_never_goes_below(length):
    layer, a = layer_of(1.0), share_of(1.0)
    fit = prefix_limits.fitted_prefix(layer, length, generator(1))
    least = prefix_limits.least_error(a)
    assert fit.errors.shape == (501,)
    assert [x.shape for x in fit.parts] == [(length, 2), (length, 1)]
    # 500 steps end within 1e-9 of a minimum where the error is flat to second order.
    close(fit.errors[-1], least, 1e-9)
    assert fit.errors.min() >= least - 1e-12
    answered = colour_task.with_prefix(layer, TOKENS, *fit.parts)
    close(mean_squared_error(answered), fit.errors[-1])
    scale, shift = scale_and_shift(layer, *fit.parts)
    close(scale, prefix_limits.best_scale(a), 1e-4)
    close(shift, 0.0, 1e-4)
    # The least error answers no more rightly than the frozen layer does.
    assert colour_task.right(answered, TARGETS) == 2


def test_descent_on_lora_goes_to_zero():
    layer = layer_of(1.0)
    fit = prefix_limits.fitted_lora(layer, 1, generator(1))
    assert [x.shape for x in fit.parts] == [(1, 4), (2, 1)]
    close(fit.errors[0], mean_squared_error(colour_task.answers(layer, TOKENS)))
    # Softmax never gives all to one token: the error only nears 0.
    assert 0 < fit.errors[-1] < 1e-4
    answered = colour_task.with_lora(layer, TOKENS, *fit.parts)
    close(mean_squared_error(answered), fit.errors[-1])
    assert colour_task.right(answered, TARGETS) == 4


def test_a_fit_depends_on_its_generator_alone_and_leaves_the_layer():
    layer = layer_of(1.0)
    kept = [x.clone() for x in layer]
    for fit in (prefix_limits.fitted_prefix, prefix_limits.fitted_lora):
        one, same, other = (fit(layer, 2, generator(seed), 3) for seed in (0, 0, 1))
        assert torch.equal(one.errors, same.errors)
        assert all(map(torch.equal, one.parts, same.parts))
        assert not torch.equal(one.parts[0], other.parts[0])
        assert not any(x.requires_grad for x in (*one.parts, one.errors))
    assert all(map(torch.equal, layer, kept))


def test_the_start_is_drawn_in_float64_whatever_the_type():
    narrow = colour_task.colour_layer(1.0, torch.float32, "cpu")
    single = prefix_limits.fitted_prefix(narrow, 2, generator(), 1, 1e-3)
    wide = prefix_limits.fitted_prefix(layer_of(1.0), 2, generator(), 1, 1e-3)
    assert single.parts[0].dtype == single.errors.dtype == torch.float32
    close(single.errors[0].double(), wide.errors[0], 1e-6)


HALF, LAYER = double(0.5), layer_of(1.0)
BAD = {
    "a-nan": lambda: prefix_limits.least_error(double(math.nan)),
    "a-above": lambda: prefix_limits.best_scale(double(1.1)),
    "a-below": lambda: prefix_limits.most_right(-0.1),
    "scale": lambda: prefix_limits.prefixed_law(HALF, double(1.5), HALF),
    "shift": lambda: prefix_limits.prefixed_law(HALF, HALF, double(math.inf)),
    "layer-blue": lambda: prefix_limits.three_right(layer_of(-1.0)),
    "layer-all": lambda: prefix_limits.three_right(layer_of(50.0)),
    "length": lambda: prefix_limits.fitted_prefix(LAYER, 0, generator()),
    "rank": lambda: prefix_limits.fitted_lora(LAYER, 0, generator()),
    "steps": lambda: prefix_limits.fitted_lora(LAYER, 1, generator(), 0),
    "rate": lambda: prefix_limits.fitted_prefix(LAYER, 1, generator(), 1, 0.0),
    "rate-nan": lambda: prefix_limits.fitted_prefix(LAYER, 1, generator(), 1, math.nan),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    with pytest.raises(ValueError, match=rf"^{case.split('-')[0]}: must "):
        BAD[case]()
