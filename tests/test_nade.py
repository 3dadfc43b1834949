"""FVSBN and NADE: laws that sum to 1, logits that see the past alone, samplers, and their fits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradbook import bits, nade
from gradbook.divergences import kl

N, HIDDEN = 5, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniforms(*shape, seed=9):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def fvsbn(n=N, seed=0):
    return nade.Fvsbn(normal(n, n, seed=seed), normal(n, seed=seed + 1))


def neural(n=N, hidden=HIDDEN, seed=0):
    shapes = (n, hidden), (hidden,), (n, hidden), (n,)
    return nade.Nade(*(2 * normal(*s, seed=seed + i) for i, s in enumerate(shapes)))


MODELS = {
    "fvsbn": (fvsbn, nade.fvsbn_logits, nade.fvsbn_sample),
    "nade": (neural, nade.nade_logits, nade.nade_sample),
}


def states(n=N):
    return bits.all_bits(n).double()


def nade_logits_slow(theta, x):
    """Every pixel's hidden units anew, from the whole beginning."""
    hidden = [theta.hidden_bias + x[:, :i] @ theta.weights[:i] for i in range(x.shape[1])]
    columns = [a.sigmoid() @ v for a, v in zip(hidden, theta.output, strict=True)]
    return torch.stack(columns, 1) + theta.bias


def nade_logits_at_once(theta, x):
    """All activations [N, n, H] by a cumulative sum."""
    steps = x[:, :, None] * theta.weights
    activations = theta.hidden_bias + steps.cumsum(1) - steps
    return (activations.sigmoid() * theta.output).sum(-1) + theta.bias


@pytest.mark.parametrize("other", [nade_logits_slow, nade_logits_at_once])
@settings(max_examples=20)
@given(n=st.integers(1, 7), hidden=st.integers(1, 5), seed=st.integers(0, 1000))
def test_recursion_gives_the_logits_and_gradients_of_the_definition(other, n, hidden, seed):
    theta = neural(n, hidden, seed)
    x = uniforms(6, n, seed=seed).round()
    cotangent = normal(6, n, seed=seed + 7)
    for logits in (nade.nade_logits, other):
        ours = torch.func.vjp(lambda t, f=logits: f(t, x), theta)
        value, (slopes,) = ours[0], ours[1](cotangent)
        if logits is nade.nade_logits:
            first, first_slopes = value, slopes
    torch.testing.assert_close(first, value, rtol=1e-10, atol=1e-10)
    for one, two in zip(first_slopes, slopes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_fvsbn_is_one_logistic_regression_a_pixel():
    theta, x = fvsbn(), states()
    logits = nade.fvsbn_logits(theta, x)
    for i in range(N):
        slopes = sum(theta.weights[i, j] * x[:, j] for j in range(i))
        by_hand = (theta.bias[i] + slopes).expand(len(x))
        torch.testing.assert_close(logits[:, i], by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_probabilities_sum_to_one(name, n):
    make, logits, _ = MODELS[name]
    x = states(n)
    total = nade.log_prob(logits(make(n), x), x).exp().sum().item()
    assert total == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_logits_see_the_earlier_pixels_alone(name):
    """The Jacobian at some pictures is zero on and above the diagonal, and nowhere below it."""
    make, logits, _ = MODELS[name]
    theta = make()
    x = states()[[0, 11, 21, 31]].requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: logits(theta, x).sum(0), x)
    jacobian = jacobian.permute(1, 0, 2)
    assert torch.equal(jacobian.triu(), torch.zeros_like(jacobian))
    below = torch.ones(N, N).tril(-1).bool()
    assert (jacobian[:, below].abs() > 1e-6).all()


@pytest.mark.parametrize("name", MODELS)
def test_later_pixels_may_be_flipped(name):
    make, logits, _ = MODELS[name]
    theta, x = make(), states()
    for i in range(N):
        flipped = torch.cat([x[:, :i], 1 - x[:, i:]], 1)
        ours, theirs = logits(theta, x), logits(theta, flipped)
        assert torch.equal(ours[:, : i + 1], theirs[:, : i + 1])


@pytest.mark.parametrize("name", MODELS)
def test_sampled_pictures_have_the_law(name):
    make, logits, sample = MODELS[name]
    theta, x, n = make(), states(), 100_000
    drawn = sample(theta, uniforms(n, N))
    index = (drawn @ 2.0 ** torch.arange(N - 1, -1, -1).double()).long()
    seen = index.bincount(minlength=2**N).double()
    expected = n * nade.log_prob(logits(theta, x), x).exp()
    rare = expected < 5
    seen, expected = (torch.cat([a[~rare], a[rare].sum()[None]]) for a in (seen, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    statistic = ((seen - expected).square() / expected).sum().item()
    assert len(seen) >= 12
    assert stats.chi2.sf(statistic, len(seen) - 1) > stats.norm.sf(4.5)


@pytest.mark.parametrize("name", MODELS)
def test_a_sampled_pixel_is_one_where_the_noise_is_below_its_probability(name):
    """The drawn picture's own logits, computed at once, must repeat every decision."""
    make, logits, sample = MODELS[name]
    theta, u = make(12), uniforms(500, 12)
    drawn = sample(theta, u)
    assert torch.equal(drawn, (u < logits(theta, drawn).sigmoid()).double())
    assert 0.05 < drawn.mean() < 0.95


@pytest.mark.parametrize("name", MODELS)
def test_the_type_is_that_of_the_parameters(name):
    make, logits, sample = MODELS[name]
    theta = make()
    single = type(theta)(*(part.float() for part in theta))
    drawn = sample(single, uniforms(4, N))
    assert drawn.dtype == logits(single, drawn).dtype == torch.float32


def test_log_prob_is_torchs():
    logits, x = 3 * normal(6, 4), uniforms(6, 4).round()
    exact = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(1)
    torch.testing.assert_close(nade.log_prob(logits, x), exact, rtol=1e-12, atol=0)


def test_a_chain_is_a_belief_network():
    """With weights beside the diagonal alone, the logits of the chain's conditionals."""
    n = 5
    x = states(n)
    chain = bits.Chain(uniforms(1)[0], uniforms(n - 1, 2, seed=3))
    after = chain.after.logit()
    bias = torch.cat([chain.first.logit()[None], after[:, 0]])
    theta = nade.Fvsbn(torch.diag(after[:, 1] - after[:, 0], -1), bias)
    ours = nade.log_prob(nade.fvsbn_logits(theta, x), x)
    torch.testing.assert_close(ours, bits.chain_log_prob(chain, x), rtol=1e-12, atol=1e-12)


def test_a_belief_network_fits_a_chain_exactly():
    """Newton's method on the divergence, which is convex: pixel by pixel, a logistic regression."""
    n = 4
    x = states(n)
    chain = bits.Chain(uniforms(1)[0], uniforms(n - 1, 2, seed=3))
    p = bits.chain_log_prob(chain, x).exp()

    def divergence(flat):
        theta = nade.Fvsbn(flat[n:].view(n, n), flat[:n])
        return kl(p, nade.log_prob(nade.fvsbn_logits(theta, x), x).exp())

    flat = torch.zeros(n + n * n, dtype=torch.float64)
    used = torch.cat([torch.ones(n), torch.ones(n, n).tril(-1).flatten()]).bool()
    for _ in range(12):
        slope = torch.func.grad(divergence)(flat)
        curvature = torch.func.jacrev(torch.func.grad(divergence))(flat)
        assert (slope[~used] == 0).all()
        step = torch.linalg.solve(curvature[used][:, used], slope[used])
        flat[used] -= step.clamp(-1, 1)
    assert divergence(flat).item() == pytest.approx(0, abs=1e-12)
    fitted = flat[n:].view(n, n).tril(-1)
    assert fitted.tril(-2).abs().max() < 1e-6


def test_counts_are_the_numbers_that_the_models_hold():
    theta = nade.initial_nade(7, 3, generator())
    assert sum(part.numel() for part in theta) == bits.nade_parameters(7, 3)
    network = nade.initial_fvsbn(7)
    used = network.bias.numel() + len(torch.tril_indices(*network.weights.shape, -1)[0])
    assert used == bits.fvsbn_parameters(7)


@pytest.mark.parametrize("name", MODELS)
def test_all_that_is_counted_matters_but_one_row(name):
    """NADE counts the last pixel's row of W, which nothing reads."""
    make, logits, _ = MODELS[name]
    theta, x = make(), states()
    slopes = torch.func.jacrev(lambda t: nade.log_prob(logits(t, x), x))(theta)
    moving = sum((slope != 0).any(0).sum().item() for slope in slopes)
    if name == "fvsbn":
        assert moving == bits.fvsbn_parameters(N)
    else:
        assert moving == bits.nade_parameters(N, HIDDEN) - HIDDEN
        assert (slopes.weights[:, -1] == 0).all()


def test_features_are_the_units_that_the_last_logit_reads():
    theta, x = neural(), states()
    features = nade.nade_features(theta, x)
    assert features.shape == (2**N, HIDDEN)
    last = features @ theta.output[-1] + theta.bias[-1]
    torch.testing.assert_close(last, nade.nade_logits(theta, x)[:, -1], rtol=1e-12, atol=1e-12)


def test_initial_weights_are_uniform_with_glorots_bound():
    theta = nade.initial_nade(40, 30, generator())
    bound = (6 / 70) ** 0.5
    for weights in (theta.weights, theta.output):
        assert 0.98 * bound < weights.abs().max() <= bound
        scaled = (weights.flatten().double() / bound + 1) / 2
        assert stats.kstest(scaled.numpy(), "uniform").pvalue > stats.norm.sf(4.5)
    assert not torch.equal(theta.weights, theta.output)
    again = nade.initial_nade(40, 30, generator())
    assert all(torch.equal(a, b) for a, b in zip(theta, again, strict=True))
    assert (torch.cat([theta.hidden_bias, theta.bias]) == 0).all()
    assert {part.dtype for part in theta} == {torch.float32}


def test_the_initial_network_tosses_fair_coins():
    theta = nade.initial_fvsbn(4)
    x = states(4).float()
    ours = nade.log_prob(nade.fvsbn_logits(theta, x), x).exp()
    torch.testing.assert_close(ours, torch.full((16,), 1 / 16))


def test_gradients_of_each_picture_can_be_taken():
    theta, x = neural(), states()[3:9]

    def loss(theta, row):
        return nade.log_prob(nade.nade_logits(theta, row[None]), row[None]).sum()

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(theta, x)
    whole = torch.func.grad(lambda t: nade.log_prob(nade.nade_logits(t, x), x).sum())(theta)
    for each, total in zip(rows, whole, strict=True):
        torch.testing.assert_close(each.sum(0), total, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_gives_an_empty_result(name):
    make, logits, sample = MODELS[name]
    none = torch.empty(0, N).double()
    assert logits(make(), none).shape == sample(make(), none).shape == (0, N)
    assert nade.log_prob(none, none).shape == (0,)
    assert nade.nade_features(neural(), none).shape == (0, HIDDEN)


def nan_in(theta, i):
    return theta._replace(**{theta._fields[i]: theta[i] * float("nan")})


BAD = [
    (lambda: nade.initial_fvsbn(0), "n: "),
    (lambda: nade.initial_nade(0, 2, generator()), "n: "),
    (lambda: nade.initial_nade(2, 0, generator()), "hidden: "),
    (lambda: nade.nade_features(neural(), states(4)), "x: "),
    (lambda: nade.nade_features(nan_in(neural(), 0), states()), "theta: must be finite"),
    (lambda: nade.fvsbn_logits(fvsbn()._replace(bias=normal(4)), states()), "theta: shapes"),
    (lambda: nade.fvsbn_logits(fvsbn()._replace(weights=normal(5, 4)), states()), "theta: shapes"),
    (lambda: nade.nade_logits(neural()._replace(output=normal(5, 4)), states()), "theta: shapes"),
    (lambda: nade.nade_logits(neural()._replace(bias=normal(4)), states()), "theta: shapes"),
    (lambda: nade.log_prob(normal(3, 2), torch.zeros(3, 3)), "logits: must have the shape"),
    (lambda: nade.log_prob(normal(3, 2) / 0, torch.zeros(3, 2)), "logits: must be finite"),
    (lambda: nade.log_prob(normal(3, 2), torch.full((3, 2), 0.5)), "x: "),
]
for _make, _logits, _sample in MODELS.values():
    BAD += [
        (lambda m=_make, f=_logits: f(m(), states(4)), "x: must be \\["),
        (lambda m=_make, f=_logits: f(m(), 0.5 * states()), "x: must be zeros"),
        (lambda m=_make, f=_logits: f(nan_in(m(), 1), states()), "theta: must be finite"),
        (lambda m=_make, f=_sample: f(nan_in(m(), 0), uniforms(3, N)), "theta: must be finite"),
        (lambda m=_make, f=_sample: f(m(), uniforms(3, 4)), "uniforms: must be \\["),
        (lambda m=_make, f=_sample: f(m(), torch.ones(3, N)), "uniforms: must be in"),
        (lambda m=_make, f=_sample: f(m(), -uniforms(3, N)), "uniforms: must be in"),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
