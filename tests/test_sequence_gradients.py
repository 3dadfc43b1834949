import itertools
import math

import pytest
import torch
from torch.func import grad, vmap

from gradbook import comparisons, estimators, sequence_gradients, sequence_laws, sequences
from gradbook.expectation import strings
from gradbook.gumbel import gumbel_noise

F64 = torch.float64
LENGTH = 4
WEIGHT = 0.3


def problem(vocabulary=3, seed=0):
    """Parameters and a reward."""
    generator = torch.Generator().manual_seed(seed)
    theta = sequences.initial(generator, vocabulary, 2, 3)
    return theta, torch.randn([vocabulary] * 3, generator=generator, dtype=F64)


def noise(*shape, seed=0):
    return gumbel_noise(shape, torch.Generator().manual_seed(seed), F64)


def flat(theta, axes=0):
    return torch.cat([part.flatten(axes) for part in theta.values()], -1)


def exact_gradient(theta, reward, length=LENGTH):
    return flat(grad(sequence_gradients.exact)(theta, reward, length))


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance)


UNBIASED = {
    "reinforce": lambda *a: sequence_gradients.reinforce(*a, 0.0),
    "baseline": lambda *a: sequence_gradients.reinforce(*a, -1.7),
    "leave_one_out": sequence_gradients.leave_one_out,
    "reward_to_go": sequence_gradients.reward_to_go,
    "with_entropy": lambda *a: sequence_gradients.with_entropy(*a, WEIGHT),
}


@pytest.fixture
def every_pair(monkeypatch):
    """All 16 x 16 pairs of strings of four bits: batches, their probabilities, and the problem."""
    theta, reward = problem(vocabulary=2)
    every = strings(2, LENGTH)
    pairs = torch.tensor(list(itertools.product(range(16), repeat=2)))
    policy = sequences.log_policy(theta)
    probs = sequences.token_log_probs(policy, every).sum(-1).exp()[pairs].prod(-1)
    # The strings stand where the noise would: a draw only reads them off.
    monkeypatch.setattr(sequence_gradients, "draw", lambda policy, noise: noise[..., 0].long())
    return theta, reward, every[pairs][..., None].double().expand(-1, -1, -1, 2), probs


def every_gradient(surrogate, theta, reward, batches):
    return flat(vmap(grad(surrogate), (None, None, 0))(theta, reward, batches), 1)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_every_pair_of_strings_is_the_exact_gradient(name, every_pair):
    """No Monte Carlo: all 256 batches of two strings, weighted by their probabilities."""
    theta, reward, batches, probs = every_pair
    rows = every_gradient(UNBIASED[name], theta, reward, batches)
    exact = exact_gradient(theta, reward)
    if name == "with_entropy":
        bonus = grad(sequence_gradients.exact_with_entropy)(theta, reward, LENGTH, WEIGHT)
        assert (flat(bonus) - exact).abs().max() > 1e-3
        exact = flat(bonus)
    close(probs @ rows, exact)


def test_reward_to_go_has_the_least_variance_of_the_three(every_pair):
    theta, reward, batches, probs = every_pair
    exact = exact_gradient(theta, reward)
    variances = {}
    for name in ("baseline", "leave_one_out", "reward_to_go"):
        rows = every_gradient(UNBIASED[name], theta, reward, batches)
        variances[name] = (probs @ (rows - exact).square()).sum()
    assert variances["reward_to_go"] < variances["leave_one_out"] < variances["baseline"]


def test_the_entropy_bonus_is_the_strings_entropy():
    theta, reward = problem()
    policy = sequences.log_policy(theta)
    bonus = sequence_gradients.exact_with_entropy(theta, reward, 5, WEIGHT)
    bonus = bonus - sequence_gradients.exact(theta, reward, 5)
    close(bonus, WEIGHT * sequence_laws.entropy(policy, 5))


def test_without_weight_the_bonus_changes_nothing():
    theta, reward = problem()
    draws = noise(6, 5, 3)
    ours = grad(sequence_gradients.with_entropy)(theta, reward, draws, 0.0)
    close(flat(ours), flat(grad(sequence_gradients.reward_to_go)(theta, reward, draws)))


def test_score_functions_are_those_of_the_estimators_module():
    theta, reward = problem()
    draws = noise(6, 5, 3)
    family = estimators.Family(
        sample=lambda theta, row: sequences.draw(sequences.log_policy(theta), row),
        log_prob=lambda z, theta: sequences.token_log_probs(sequences.log_policy(theta), z).sum(),
    )

    def f(z, theta):
        return sequences.trigram_rewards(reward, z).mean()

    pairs = (
        (estimators.score_function, UNBIASED["reinforce"]),
        (estimators.leave_one_out, UNBIASED["leave_one_out"]),
    )
    for estimator, surrogate in pairs:
        rows = flat(estimator(f, family, theta, draws), 1)
        close(flat(grad(surrogate)(theta, reward, draws)), rows.mean(0), 1e-12)


@pytest.mark.parametrize("name", UNBIASED)
def test_real_draws_are_unbiased_too(name):
    """3000 batches of three strings: 4.5 standard errors in each of the coordinates."""
    theta, reward = problem()
    rows = every_gradient(UNBIASED[name], theta, reward, noise(3000, 3, LENGTH, 3, seed=1))
    exact = exact_gradient(theta, reward)
    if name == "with_entropy":
        args = (theta, reward, LENGTH, WEIGHT)
        exact = flat(grad(sequence_gradients.exact_with_entropy)(*args))
    found = comparisons.compare(rows, exact)
    assert found.z_max <= 4.5
    assert abs(found.slope - 1) <= 4.5 * found.slope_stderr


@pytest.mark.parametrize(
    "surrogate",
    [sequence_gradients.gumbel_softmax, sequence_gradients.straight_through_gumbel],
)
def test_relaxed_gradients_are_biased_and_the_test_sees_it(surrogate):
    theta, reward = problem()
    draws = noise(3000, 3, LENGTH, 3, seed=2)
    rows = every_gradient(lambda *a: surrogate(*a, 1.0), theta, reward, draws)
    assert comparisons.compare(rows, exact_gradient(theta, reward)).z_max > 10


def test_the_relaxed_score_of_hard_strings_is_their_score():
    reward, every = problem()[1], strings(3, 5)
    hard = torch.eye(3, dtype=F64)[every]
    ours = sequence_gradients.relaxed_score(reward, hard)
    close(ours, sequences.trigram_rewards(reward, every).mean(-1), 1e-12)


def test_the_relaxed_score_is_linear_in_every_token():
    reward = problem()[1]
    y = noise(4, 3, seed=3).softmax(-1)
    parts = [
        (y[t, a] * y[t + 1, b] * y[t + 2, c] * reward[a, b, c]).item()
        for t in range(2)
        for a, b, c in itertools.product(range(3), repeat=3)
    ]
    assert sequence_gradients.relaxed_score(reward, y).item() == pytest.approx(sum(parts) / 2)


def test_straight_through_scores_the_strings_that_are_drawn():
    theta, reward = problem()
    draws = noise(7, 5, 3)
    drawn = sequences.draw(sequences.log_policy(theta), draws)
    score = sequences.trigram_rewards(reward, drawn).mean()
    for temperature in (0.2, 1.0):
        ours = sequence_gradients.straight_through_gumbel(theta, reward, draws, temperature)
        close(ours, score, 1e-12)


def test_straight_through_scores_these_strings_where_the_relaxed_tokens_tie():
    """So hot that all shares of a token round to one number, whose first is no draw."""
    theta, reward = problem()
    draws = noise(7, 5, 3)
    drawn = sequences.draw(sequences.log_policy(theta), draws)
    ours = sequence_gradients.straight_through_gumbel(theta, reward, draws, 1e18)
    close(ours, sequences.trigram_rewards(reward, drawn).mean(), 1e-12)


def test_a_cold_relaxation_scores_the_strings_that_are_drawn():
    theta, reward = problem()
    draws = noise(7, 5, 3)
    drawn = sequences.draw(sequences.log_policy(theta), draws)
    ours = sequence_gradients.gumbel_softmax(theta, reward, draws, 1e-4)
    close(ours, sequences.trigram_rewards(reward, drawn).mean(), 1e-8)


@pytest.mark.parametrize("hard", [False, True])
def test_relaxed_gradients_are_those_of_a_plain_loop(hard):
    """A second implementation: a loop over letters, and backward()."""
    theta, reward = problem()
    draws, temperature = noise(2, 4, 3, seed=4), 0.7
    leaves = {name: part.clone().requires_grad_() for name, part in theta.items()}
    total = 0.0
    for rows in draws:
        y = [torch.tensor([1.0, 0, 0], dtype=F64)] * 2
        for row in rows:
            one = y[-2] @ leaves["embedding"] @ leaves["before"]
            two = y[-1] @ leaves["embedding"] @ leaves["last"]
            hidden = torch.tanh(one + two + leaves["bias"])
            logits = hidden @ leaves["output"] + leaves["output_bias"]
            soft = torch.softmax((logits + row) / temperature, -1)
            top = torch.nn.functional.one_hot(soft.argmax(), 3)
            y.append(top - soft.detach() + soft if hard else soft)
        for a, b, c in zip(y[2:], y[3:], y[4:], strict=False):
            total = total + torch.einsum("a,b,c,abc->", a, b, c, reward) / 2 / len(draws)
    total.backward()
    functions = sequence_gradients.gumbel_softmax, sequence_gradients.straight_through_gumbel
    ours = grad(functions[hard])(theta, reward, draws, temperature)
    close(flat(ours), torch.cat([leaf.grad.flatten() for leaf in leaves.values()]))


def test_a_baseline_per_string_is_each_strings_own():
    theta, reward = problem()
    draws, baseline = noise(4, 5, 3), torch.arange(4.0, dtype=F64)
    ours = grad(sequence_gradients.reinforce)(theta, reward, draws, baseline)
    single = [
        flat(grad(sequence_gradients.reinforce)(theta, reward, draws[i : i + 1], float(i)))
        for i in range(4)
    ]
    close(flat(ours), torch.stack(single).mean(0), 1e-12)
    for bad in (baseline[:, None], baseline[None], baseline[:3], torch.ones(2, 4), math.nan):
        with pytest.raises(ValueError, match="^baseline: "):
            sequence_gradients.reinforce(theta, reward, draws, bad)


def test_a_baseline_that_knows_theta_sends_no_gradient_through_it():
    theta, reward = problem()
    draws = noise(4, 5, 3)

    def surrogate(theta):
        level = theta["output"].square().sum()
        return sequence_gradients.reinforce(theta, reward, draws, level)

    level = theta["output"].square().sum().item()
    fixed = grad(sequence_gradients.reinforce)(theta, reward, draws, level)
    close(flat(grad(surrogate)(theta)), flat(fixed), 1e-12)


def test_bad_input_is_named():
    theta, reward = problem()
    lonely = (
        sequence_gradients.leave_one_out,
        sequence_gradients.reward_to_go,
        UNBIASED["with_entropy"],
    )
    for surrogate in lonely:
        with pytest.raises(ValueError, match="^noise: "):
            surrogate(theta, reward, noise(1, 5, 3))
    for surrogate in (
        sequence_gradients.gumbel_softmax,
        sequence_gradients.straight_through_gumbel,
    ):
        for temperature in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="^temperature: "):
                surrogate(theta, reward, noise(2, 5, 3), temperature)
    warm = [
        lambda *a: sequence_gradients.gumbel_softmax(*a, 1.0),
        lambda *a: sequence_gradients.straight_through_gumbel(*a, 1.0),
    ]
    for surrogate in (*UNBIASED.values(), *warm):
        for shape in ((2, 5, 4), (2, 2, 3), (0, 5, 3), (5, 3)):
            with pytest.raises(ValueError, match="^noise: "):
                surrogate(theta, reward, noise(*shape))
        with pytest.raises(ValueError, match="^noise: "):
            surrogate(theta, reward, noise(2, 5, 3) * math.nan)
        for bad in (noise(4, 4, 4), reward[:2], reward[..., None], reward[0]):
            with pytest.raises(ValueError, match="^reward: must be"):
                surrogate(theta, bad, noise(2, 5, 3))
        spoiled = reward.clone()
        spoiled[2, 2, 2] = math.nan
        with pytest.raises(ValueError, match="^reward: must be finite"):
            surrogate(theta, spoiled, noise(2, 5, 3))
