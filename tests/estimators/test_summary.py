import numpy as np
import pytest
import torch

from gradbook.estimators import summarize

F64 = torch.float64


def test_summary_is_mean_stderr_and_unbiased_variance():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    summary = summarize(x)
    np.testing.assert_allclose(summary.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(summary.variance, x.numpy().var(0, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(summary.stderr, x.numpy().std(0, ddof=1) / np.sqrt(7), rtol=1e-13)


@pytest.mark.parametrize("bad", [torch.tensor(1.0), torch.ones(0), torch.ones(1, 3)])
def test_summary_needs_two_samples(bad):
    with pytest.raises(ValueError, match="gradients: needs at least two"):
        summarize(bad)


def test_summary_refuses_nan():
    with pytest.raises(ValueError, match="gradients: must be finite"):
        summarize(torch.tensor([1.0, float("nan")]))
