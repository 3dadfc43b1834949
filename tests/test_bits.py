"""Tables, independent pixels and chains: their counts, their maximum-likelihood fits, their KLs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook import bits
from gradbook.divergences import kl

FITS = {
    "table": (bits.fit_table, bits.table_log_prob),
    "independent": (bits.fit_independent, bits.independent_log_prob),
    "chain": (bits.fit_chain, bits.chain_log_prob),
}


def states(n):
    return bits.all_bits(n).double()


def counts(n, seed=0, least=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(least, 12, (2**n,), generator=generator)


def pictures(n, seed=0, least=1):
    """Every picture as often as the counts say: the law of the data is known without noise."""
    return states(n).repeat_interleave(counts(n, seed, least), 0)


def exact_kl(log_p, log_q):
    return kl(log_p.exp(), log_q.exp())


def law(n, seed=0):
    drawn = counts(n, seed).double()
    return drawn / drawn.sum()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_all_bits_are_the_binary_numbers(n):
    expected = [[float(c) for c in f"{i:0{n}b}"] for i in range(2**n)]
    assert bits.all_bits(n).tolist() == expected
    assert bits.all_bits(n).dtype == torch.get_default_dtype()


@given(n=st.integers(1, 400), hidden=st.integers(1, 50))
def test_counts(n, hidden):
    assert bits.table_parameters(n) == sum(bits.conditional_parameters(n)) == 2**n - 1
    assert bits.conditional_parameters(n) == [2 ** (i - 1) for i in range(1, n + 1)]
    assert bits.independent_parameters(n) == n
    assert bits.chain_parameters(n) == n + (n - 1)
    assert bits.fvsbn_parameters(n) == n + math.comb(n, 2)
    assert bits.nade_parameters(n, hidden) == n * hidden + hidden * n + hidden + n


@pytest.mark.parametrize("n", [1, 2, 4])
def test_counts_are_those_of_the_fits(n):
    """A table's probabilities sum to 1, which takes one away."""
    x = pictures(n)
    assert bits.fit_table(x, 0).probabilities.numel() - 1 == bits.table_parameters(n)
    assert bits.fit_independent(x, 0).probabilities.numel() == bits.independent_parameters(n)
    assert sum(part.numel() for part in bits.fit_chain(x, 0)) == bits.chain_parameters(n)


@pytest.mark.parametrize("i", [1, 2, 3, 4])
def test_each_factor_of_the_chain_rule_needs_one_number_a_beginning(i):
    """Different conditionals at every beginning give different laws, all of them possible."""
    n = 4
    p = law(n).reshape([2] * n)
    beginnings = p.sum(list(range(i, n))) if i < n else p
    free = beginnings[..., 1] / beginnings.sum(-1)
    assert free.numel() == bits.conditional_parameters(n)[i - 1]
    assert len(free.unique()) == free.numel()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("pseudo_count", [0, 0.7])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_fits_sum_to_one(fit, pseudo_count, n):
    fitted, log_prob = FITS[fit]
    model = fitted(pictures(n), pseudo_count)
    total = log_prob(model, states(n)).exp().sum().item()
    assert total == pytest.approx(1, rel=1e-12)


def test_table_without_pseudo_count_is_the_frequencies():
    n = 4
    shuffled = pictures(n, least=0)
    shuffled = shuffled[torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(1))]
    frequencies = counts(n, least=0).double() / len(shuffled)
    assert (frequencies == 0).any()
    table = bits.fit_table(shuffled, 0)
    torch.testing.assert_close(table.probabilities, frequencies, rtol=1e-15, atol=0)
    assert torch.equal(bits.table_log_prob(table, states(n)), frequencies.log())


def test_fits_of_the_whole_law_are_its_marginals_and_conditionals():
    n = 4
    p, x = law(n).reshape([2] * n), pictures(n)
    independent, chain = bits.fit_independent(x, 0), bits.fit_chain(x, 0)
    for i in range(n):
        marginal = p.sum([j for j in range(n) if j != i])
        assert independent.probabilities[i].item() == pytest.approx(marginal[1].item(), rel=1e-12)
    assert chain.first.item() == pytest.approx(independent.probabilities[0].item(), rel=1e-12)
    for i in range(1, n):
        pair = p.sum([j for j in range(n) if j not in (i - 1, i)])
        expected = pair[:, 1] / pair.sum(1)
        torch.testing.assert_close(chain.after[i - 1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fit", FITS)
def test_sampled_fits_tend_to_the_whole_law(fit):
    """The fit's own log-likelihood gap, 2 N KL, is chi-square with a parameter a degree."""
    n, count = 3, 200_000
    fitted, log_prob = FITS[fit]
    best = fitted(pictures(n), 0)
    generator = torch.Generator().manual_seed(3)
    # Drawn from the best model, so that the gap has its textbook law.
    drawn = log_prob(best, states(n)).exp().multinomial(count, True, generator=generator)
    model = fitted(states(n)[drawn], 0)
    gap = exact_kl(log_prob(best, states(n)), log_prob(model, states(n))).item()
    degrees = {"table": 7, "independent": 3, "chain": 5}[fit]
    assert 0 < 2 * count * gap < degrees + 4.5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("seed", range(3))
def test_fits_maximize_the_likelihood(fit, seed):
    """Its slope along the free numbers is zero, and every small step loses."""
    n = 3
    x = pictures(n, seed)
    fitted, log_prob = FITS[fit]
    model = fitted(x, 0)

    def likelihood(*logits):
        normal = (lambda a: a.softmax(0)) if fit == "table" else torch.sigmoid
        return log_prob(type(model)(*(normal(a) for a in logits)), x).sum()

    best = [p.log() if fit == "table" else p.logit() for p in model]
    slopes = torch.func.grad(likelihood, argnums=tuple(range(len(best))))(*best)
    assert max(slope.abs().max().item() for slope in slopes) < 1e-9 * len(x)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        moved = [a + 0.1 * torch.randn(a.shape, generator=generator).double() for a in best]
        assert likelihood(*moved) < likelihood(*best)


def test_pseudo_counts_are_pictures_that_were_added():
    """A pseudo-count adds every picture once to a table, two fair pixels to the others."""
    n = 3
    x = pictures(n, least=0)
    whole = torch.cat([x, states(n)])
    table = bits.fit_table(whole, 0).probabilities
    torch.testing.assert_close(bits.fit_table(x, 1).probabilities, table, rtol=1e-14, atol=0)
    pair = torch.cat([x, torch.zeros(1, n).double(), torch.ones(1, n).double()])
    independent = bits.fit_independent(pair, 0).probabilities
    ours = bits.fit_independent(x, 1).probabilities
    torch.testing.assert_close(ours, independent, rtol=1e-14, atol=0)
    ones, zeros = x[:, 0] == 1, x[:, 0] == 0
    chain = bits.fit_chain(x, 2.5)
    for column, seen in enumerate((zeros, ones)):
        by_hand = (x[seen, 1].sum() + 2.5) / (seen.sum() + 5)
        assert chain.after[0, column].item() == pytest.approx(by_hand.item(), rel=1e-14)
    assert chain.first.item() == pytest.approx(((ones.sum() + 2.5) / (len(x) + 5)).item())


def test_fits_of_nothing_are_fair():
    none = torch.empty(0, 3).double()
    for fitted, log_prob in FITS.values():
        model = fitted(none, 0.5)
        torch.testing.assert_close(
            log_prob(model, states(3)), torch.full((8,), -3 * math.log(2)).double()
        )
        assert log_prob(model, none).shape == (0,)


def test_a_chain_is_fair_after_what_was_never_seen():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]).double()
    chain = bits.fit_chain(x, 0)
    assert chain.first == 1
    torch.testing.assert_close(chain.after, torch.tensor([[1 / 2, 2 / 3]]).double())
    expected = torch.tensor([0.0, 0.0, 1 / 3, 2 / 3]).double()
    torch.testing.assert_close(bits.chain_log_prob(chain, states(2)).exp(), expected)


def test_divergence_of_independent_pixels_is_the_total_correlation():
    n = 4
    p, x = law(n), pictures(n)
    model = bits.fit_independent(x, 0)
    marginals = model.probabilities
    entropies = torch.distributions.Bernoulli(marginals).entropy().sum()
    total_correlation = entropies + (p * p.log()).sum()
    kl = exact_kl(p.log(), bits.independent_log_prob(model, states(n)))
    assert kl.item() == pytest.approx(total_correlation.item(), rel=1e-10)
    assert kl > 0.01


def test_divergences_fall_as_the_families_grow():
    n = 4
    p = law(n).log()
    kls = []
    for name in ("independent", "chain", "table"):
        fitted, log_prob = FITS[name]
        kls.append(exact_kl(p, log_prob(fitted(pictures(n), 0), states(n))).item())
    assert kls[0] > kls[1] > kls[2]
    assert kls[2] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bits.table_parameters(0), "n: "),
        (lambda: bits.conditional_parameters(0), "n: "),
        (lambda: bits.independent_parameters(0), "n: "),
        (lambda: bits.chain_parameters(0), "n: "),
        (lambda: bits.fvsbn_parameters(0), "n: "),
        (lambda: bits.nade_parameters(0, 1), "n: "),
        (lambda: bits.nade_parameters(1, 0), "hidden: "),
        (lambda: bits.all_bits(0), "n: "),
        (lambda: bits.all_bits(21), "n: "),
        (lambda: bits.fit_table(torch.zeros(1, 21), 0), "n: "),
        (lambda: bits.fit_table(torch.full((2, 2), 0.5), 0), "x: must be zeros"),
        (lambda: bits.fit_chain(torch.zeros(3), 0), r"x: must be \[N, n\]"),
        (lambda: bits.fit_chain(torch.zeros(3, 0), 0), r"x: must be \[N, n\]"),
        (lambda: bits.fit_chain(torch.zeros(3, 2).long(), 0), "x: must be of a floating"),
        (lambda: bits.fit_independent(torch.full((2, 2), math.nan), 0), "x: must be zeros"),
        (lambda: bits.fit_independent(torch.zeros(3, 2), -0.1), "pseudo_count: "),
        (lambda: bits.fit_independent(torch.zeros(3, 2), math.nan), "pseudo_count: "),
        (lambda: bits.fit_independent(torch.zeros(3, 2), math.inf), "pseudo_count: "),
        (lambda: bits.fit_table(torch.zeros(0, 2), 0), "x: must have a picture"),
        (lambda: bits.table_log_prob(bits.fit_table(states(2), 1), states(3)), "x: "),
        (lambda: bits.independent_log_prob(bits.fit_independent(states(2), 1), states(3)), "x: "),
        (lambda: bits.chain_log_prob(bits.fit_chain(states(2), 1), states(3)), "x: "),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bits.table_log_prob(bits.Table(torch.full((3,), 1 / 3)), x[:, :1]), "table: "),
        (lambda x: bits.table_log_prob(bits.Table(torch.tensor([1.5, -0.5])), x[:, :1]), "prob"),
        (
            lambda x: bits.independent_log_prob(bits.Independent(torch.tensor([0.5, 1.5])), x),
            "prob",
        ),
        (
            lambda x: bits.chain_log_prob(
                bits.Chain(torch.tensor(0.5), torch.tensor([[0.5, -1.0]])), x
            ),
            "prob",
        ),
    ],
)
def test_what_is_no_model_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 2))
