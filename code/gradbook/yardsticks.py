"""Two independent yardsticks for a posterior: a long run of NUTS, and importance sampling."""

import math
import sys
from typing import Any

import torch
from torch import Tensor

from gradbook import normals
from gradbook.normals import Normal
from gradbook.variational import Target


def nuts(target: Target, scale: Normal, chains: int, draws: int, warmup: int) -> Tensor:
    """Sample a posterior by the No-U-Turn sampler of Pyro.

    Args:
        target: log joint density on the CPU.
        scale: the sampler moves in coordinates in which this normal is standard. That changes its
            speed and not the distribution that it samples.
        chains: how many; chain c starts from seed c.
        draws: kept draws of each chain.
        warmup: draws thrown away before them.

    Returns:
        [chains, draws, d]; the chains start at twice the spread of ``scale``.

    Source: M. D. Hoffman and A. Gelman, 2014, "The No-U-Turn sampler".
    """
    from pyro.infer.mcmc import MCMC, NUTS  # only the record needs it, never a page

    found = []
    for chain in range(chains):
        # Pyro draws from torch's global generator: give it one of its own and put the old one back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chain)
            start = 2 * torch.randn_like(scale.mean)
            kernel = NUTS(potential_fn=lambda at: -target(scale.mean + scale.factor @ at["u"]))
            sampler = MCMC(
                kernel,
                draws,
                warmup_steps=warmup,
                initial_params={"u": start},
                disable_progbar=not sys.stderr.isatty(),
            )
            sampler.run()
            found.append(scale.mean + sampler.get_samples()["u"] @ scale.factor.T)
    return torch.stack(found)


def moments(chains: Tensor) -> dict[str, Any]:
    """Estimate moments with Monte Carlo standard errors, and how well the chains agree.

    Args:
        chains: draws [chains, draws, d].

    Returns:
        ``mean`` and ``sd`` of each coordinate with ``mean_stderr`` and ``sd_stderr``; ``ess_mean``
        and ``ess_square``, the effective sample sizes behind them; ``rhat_max``, the largest split
        R-hat; how many ``chains`` and ``draws`` of each there are.

    Source: A. Gelman et al., 2013, "Bayesian data analysis", third edition, sections 11.4 and 11.5.
    """
    from pyro.ops import stats

    def ess(x: Tensor) -> Tensor:
        return stats.effective_sample_size(x, chain_dim=0, sample_dim=1)

    mean = chains.mean((0, 1))
    square = (chains - mean).square()
    sd = square.mean((0, 1)).sqrt()
    return {
        "chains": chains.shape[0],
        "draws": chains.shape[1],
        "mean": mean.tolist(),
        "mean_stderr": (sd / ess(chains).sqrt()).tolist(),
        "sd": sd.tolist(),
        "sd_stderr": (square.flatten(0, 1).std(0) / ess(square).sqrt() / (2 * sd)).tolist(),
        "ess_mean": ess(chains).tolist(),
        "ess_square": ess(square).tolist(),
        "rhat_max": stats.split_gelman_rubin(chains, chain_dim=0, sample_dim=1).max().item(),
    }


def importance(target: Target, proposal: Normal, draws: int) -> dict[str, Any]:
    """Estimate posterior moments and the evidence by self-normalized importance sampling.

    A tenth of the draws come from the prior. Then no weight exceeds ten times a likelihood, and the
    variance is finite; the normal alone has lighter tails than the posterior.

    Args:
        target: log joint density under a standard normal prior.
        proposal: a normal near the posterior, on the CPU.
        draws: how many, at least 10.

    Returns:
        ``draws``, ``mean``, ``mean_stderr``, ``sd``, the effective sample size ``ess``,
        ``log_evidence`` and ``log_evidence_stderr``.

    Source: T. Hesterberg, 1995, "Weighted average importance sampling and defensive mixture
    distributions".
    """
    generator = torch.Generator().manual_seed(0)
    prior = Normal(torch.zeros_like(proposal.mean), torch.eye(len(proposal.mean)).to(proposal.mean))
    shape = (draws, len(proposal.mean))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    noise = noise.to(proposal.mean)
    defensive = draws // 10
    z = torch.cat([noise[:defensive], normals.sample(proposal, noise[defensive:])])
    share = defensive / draws
    mixture = torch.logaddexp(
        math.log(share) + normals.log_prob(prior, z),
        math.log(1 - share) + normals.log_prob(proposal, z),
    )
    log_weight = torch.cat([target(part) for part in z.split(10_000)]) - mixture
    weight = log_weight.softmax(0)
    mean = weight @ z
    square = (z - mean).square()
    ess = 1 / weight.square().sum()
    return {
        "draws": draws,
        "ess": ess.item(),
        "mean": mean.tolist(),
        "mean_stderr": (weight.square() @ square).sqrt().tolist(),
        "sd": (weight @ square).sqrt().tolist(),
        "log_evidence": (log_weight.logsumexp(0) - math.log(draws)).item(),
        "log_evidence_stderr": (1 / ess - 1 / draws).sqrt().item(),
    }
