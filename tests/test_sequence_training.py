import math

import pytest
import torch
from torch.func import grad

from gradbook import sequence_gradients, sequences
from gradbook.gumbel import gumbel_noise
from gradbook.sequence_training import Method, climb

F64 = torch.float64


def problem():
    generator = torch.Generator().manual_seed(0)
    theta = sequences.initial(generator, 3, 2, 4)
    reward = (torch.rand(3, 3, 3, generator=generator) < 0.3).double()
    batches = list(gumbel_noise((60, 8, 5, 3), generator, F64))
    return theta, reward, batches


def exact(theta, reward, noise, baseline):
    return sequence_gradients.exact(theta, reward, 5)


def test_a_climb_is_torchs_adam():
    theta, reward, batches = problem()
    rates = [0.05 * (1 - step / 60) for step in range(60)]
    kept = climb(Method(exact), theta, reward, batches, rates, {0, 1, 60})
    leaves = {name: part.clone().requires_grad_() for name, part in theta.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=1.0, maximize=True)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        sequence_gradients.exact(leaves, reward, 5).backward()
        optimizer.step()
    assert list(kept) == [0, 1, 60]
    for name, leaf in leaves.items():
        assert torch.equal(kept[0][name], theta[name])
        torch.testing.assert_close(kept[60][name], leaf.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_baseline_is_the_moving_average_of_earlier_scores(decay):
    theta, reward, batches = problem()
    seen = []

    def surrogate(theta, reward, noise, baseline):
        seen.append(baseline)
        return sequence_gradients.reinforce(theta, reward, noise, baseline)

    kept = climb(Method(surrogate, decay), theta, reward, batches[:6], [0.01] * 6, set(range(7)))
    expected = [0.0]
    for step in range(5):
        drawn = sequences.draw(sequences.log_policy(kept[step]), batches[step])
        score = sequences.trigram_rewards(reward, drawn).mean().item()
        expected.append(decay * expected[-1] + (1 - decay) * score)
    assert seen == pytest.approx(expected)
    assert expected[-1] > 0


def test_without_decay_the_baseline_stays_zero():
    theta, reward, batches = problem()
    arguments = theta, reward, batches[:1], [0.01], {1}
    ours = climb(Method(sequence_gradients.reinforce), *arguments)[1]
    slopes = grad(sequence_gradients.reinforce)(theta, reward, batches[0], 0.0)
    for name, slope in slopes.items():
        # Adam's first step has the size of the rate and the sign of the slope.
        step = 0.01 * slope / (slope.abs() + 1e-8)
        torch.testing.assert_close(ours[name], theta[name] + step, rtol=0, atol=1e-12)


def test_every_unbiased_gradient_climbs_the_tiny_problem():
    theta, reward, batches = problem()
    start = sequence_gradients.exact(theta, reward, 5)
    for surrogate in (
        exact,
        sequence_gradients.reinforce,
        lambda theta, reward, noise, _: sequence_gradients.reward_to_go(theta, reward, noise),
    ):
        kept = climb(Method(surrogate), theta, reward, batches, [0.03] * 60, {60})
        assert sequence_gradients.exact(kept[60], reward, 5) > start + 0.3


def test_bad_input_is_named():
    theta, reward, batches = problem()
    for decay in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="^decay: "):
            climb(Method(exact, decay), theta, reward, batches[:1], [0.1], {1})
    with pytest.raises(ValueError, match="^noises: must be one batch for each rate"):
        climb(Method(exact), theta, reward, batches[:1], [0.1, 0.1], {2})
