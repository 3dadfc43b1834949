"""The front door of vector quantization, and one quantizer from its input to its gradients."""

import pytest
import torch

from gradbook import codebooks, gumbel, nearest, quantizers, scalar_quantization, vq

HOMES = {
    "CodebookState": codebooks.CodebookState,
    "VectorQuantizer": quantizers.EmaCodebook,
    "ema_update": codebooks.ema_update,
    "finite_scalar_quantize": scalar_quantization.finite_scalar_quantize,
    "nearest_code": nearest.nearest_code,
    "perplexity": codebooks.perplexity,
    "straight_through": gumbel.straight_through,
    "vq_loss": codebooks.vq_loss,
}
N, K, D, BETA = 7, 4, 3, 0.25


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_front_door_shows_what_lives_elsewhere():
    assert sorted(HOMES) == vq.__all__
    for name, home in HOMES.items():
        assert getattr(vq, name) is home


def test_what_reaches_the_vectors_is_what_reaches_the_decoder():
    """A decoder that is not linear: its gradient is taken at the codes, not at the vectors."""
    z, codebook, weight = (
        normals(N, D).requires_grad_(),
        normals(K, D, seed=1),
        normals(D, 5, seed=2),
    )
    values, _, _ = vq.VectorQuantizer(codebook, BETA)(z)
    values.retain_grad()
    (values @ weight).tanh().square().sum().backward()
    assert torch.equal(z.grad, values.grad)
    z_q = codebook[vq.nearest_code(z, codebook)].requires_grad_()
    (z_q @ weight).tanh().square().sum().backward()
    assert torch.equal(z.grad, z_q.grad)


def test_a_whole_loss_against_finite_differences_with_the_codes_held():
    """Of the surrogate that autograd differentiates: codes and the cut parts are constants."""
    z, codebook, weight = normals(N, D), normals(K, D, seed=1), normals(D, 5, seed=2)
    z_q = codebook[vq.nearest_code(z, codebook)]
    leaf = z.clone().requires_grad_()
    values, loss, _ = vq.VectorQuantizer(codebook, BETA)(leaf)
    ((values @ weight).tanh().sum() + loss).backward()

    def surrogate(moved):
        decoded = ((z_q + moved - z) @ weight).tanh().sum()
        return decoded + BETA * (moved - z_q).square().mean()

    step, slope = 1e-6, torch.zeros(N * D).double()
    for i in range(N * D):
        shift = torch.zeros(N * D).double()
        shift[i] = step
        ends = (surrogate(z + sign * shift.view(N, D)) for sign in (1, -1))
        slope[i] = (next(ends) - next(ends)) / (2 * step)
    torch.testing.assert_close(leaf.grad.flatten(), slope, rtol=1e-6, atol=1e-8)


def test_each_term_has_its_gradient_in_closed_form():
    z, z_q = normals(N, D).requires_grad_(), normals(N, D, seed=1).requires_grad_()
    at_z, at_code = torch.autograd.grad(vq.vq_loss(z, z_q, BETA), (z, z_q))
    torch.testing.assert_close(at_code, 2 * (z_q - z) / (N * D), rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(at_z, 2 * BETA * (z - z_q) / (N * D), rtol=1e-13, atol=1e-16)


def test_lookup_loss_and_updates_find_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).double()
    z = centres.repeat(50, 1) + 0.1 * normals(150, 2)
    quantizer = vq.VectorQuantizer(centres + 2, decay=0.5, eps=1e-9)
    for _ in range(40):
        indices = quantizer(z).indices
        quantizer.update(z, indices, torch.Generator())
    means = z.view(50, 3, 2).mean(0)
    torch.testing.assert_close(quantizer.codebook, means, rtol=0, atol=1e-6)
    assert vq.perplexity(indices, 3).item() == pytest.approx(3, rel=1e-14)
