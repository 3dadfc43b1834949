"""Quantizers: gradients that pass, codes that move only where they should, directions, projections."""

import copy

import pytest
import torch
from torch.nn import functional

from gradbook import codebooks
from gradbook.codebook_starts import ones_start, restart_unused
from gradbook.nearest import nearest_code
from gradbook.quantizers import (
    CosineCodebook,
    EmaCodebook,
    LossCodebook,
    ProjectedCodebook,
    RestartedCodebook,
    unit,
)

N, K, D, LOW = 30, 6, 4, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def codebook(k=K, d=D):
    return normals(k, d, seed=1)


def projected(inner=None):
    inner = LossCodebook(codebook(d=LOW)) if inner is None else inner
    return ProjectedCodebook(inner, normals(D, LOW, seed=2), normals(LOW, D, seed=3))


QUANTIZERS = {
    "loss": lambda: LossCodebook(codebook()),
    "ema": lambda: EmaCodebook(codebook()),
    "restarted": lambda: RestartedCodebook(codebook()),
    "cosine": lambda: CosineCodebook(codebook()),
    "projected": projected,
    "projected ema": lambda: projected(EmaCodebook(codebook(d=LOW))),
    "projected cosine": lambda: projected(CosineCodebook(codebook(d=LOW))),
}
every = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
AVERAGES = (EmaCodebook, RestartedCodebook)
averages = pytest.mark.parametrize("kind", AVERAGES)


@every
def test_values_are_the_vectors_of_the_indices(make):
    quantizer, z = make(), normals(N, D)
    found = quantizer(z)
    assert found.values.shape == z.shape
    assert found.indices.shape == (N,)
    assert found.indices.dtype == torch.int64
    assert found.loss.shape == ()
    torch.testing.assert_close(quantizer.decode(found.indices), found.values, rtol=1e-14, atol=0)
    grid = found.indices.view(5, 6)
    torch.testing.assert_close(quantizer.decode(grid).view(N, D), found.values, rtol=1e-14, atol=0)
    assert quantizer.codes == K


@every
def test_an_empty_batch_has_no_loss(make):
    quantizer, none = make(), torch.empty(0, D, dtype=torch.float64)
    found = quantizer(none)
    assert found.values.shape == (0, D)
    assert found.indices.shape == (0,)
    assert found.loss == 0
    quantizer.update(none, found.indices, generator())
    assert quantizer(normals(N, D)).loss.isfinite()


@every
def test_the_type_is_that_of_the_codebook_whatever_the_default(make):
    quantizer, z = make().float(), normals(N, D).float()
    torch.set_default_dtype(torch.float64)
    try:
        found = quantizer(z)
        quantizer.update(z, found.indices, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.values.dtype == found.loss.dtype == torch.float32
    assert {x.dtype for x in quantizer.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", ["loss", "ema", "restarted"])
def test_the_decoders_gradient_passes_unchanged(name):
    z, cotangent = normals(N, D).requires_grad_(), normals(N, D, seed=7)
    found = QUANTIZERS[name]()(z)
    (slope,) = torch.autograd.grad((found.values * cotangent).sum(), z)
    assert torch.equal(slope, cotangent)


def test_a_loss_codebook_has_both_terms_and_gets_no_gradient_of_the_decoder():
    quantizer, z = LossCodebook(codebook(), beta=0.5), normals(N, D).requires_grad_()
    found = quantizer(z)
    z_q = codebook()[nearest_code(z, codebook())]
    torch.testing.assert_close(found.loss, codebooks.vq_loss(z, z_q, 0.5), rtol=1e-14, atol=0)
    at_z, at_codes = torch.autograd.grad(found.loss, (z, quantizer.codebook), retain_graph=True)
    torch.testing.assert_close(at_z, 0.5 * 2 * (z - z_q) / z.numel(), rtol=1e-12, atol=1e-16)
    n, s = codebooks.code_sums(z.detach(), found.indices, K)
    by_hand = 2 * (n[:, None] * codebook() - s) / z.numel()
    torch.testing.assert_close(at_codes, by_hand, rtol=1e-12, atol=1e-15)
    through = torch.autograd.grad(found.values.sum(), quantizer.codebook, allow_unused=True)
    assert through == (None,)


@pytest.mark.parametrize("make", [LossCodebook, CosineCodebook])
def test_only_the_optimizer_moves_a_codebook_with_a_loss(make):
    quantizer, z = make(codebook()), normals(N, D)
    before = quantizer.codebook.detach().clone()
    quantizer.update(z, quantizer(z).indices, generator())
    assert torch.equal(quantizer.codebook, before)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    first = quantizer(z).loss
    first.backward()
    optimizer.step()
    assert quantizer(z).loss < first


@averages
def test_averages_have_the_commitment_alone_and_no_parameters(kind):
    quantizer, z = kind(codebook(), beta=0.5), normals(N, D).requires_grad_()
    found = quantizer(z)
    z_q = codebook()[found.indices]
    exact = 0.5 * (z - z_q).square().mean()
    torch.testing.assert_close(found.loss, exact, rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad(found.loss, z)
    torch.testing.assert_close(slope, 0.5 * 2 * (z - z_q) / z.numel(), rtol=1e-12, atol=1e-16)
    assert not list(quantizer.parameters())
    assert set(quantizer.state_dict()) == {"counts", "sums", "codebook"}


@averages
def test_a_lookup_moves_nothing(kind):
    quantizer = kind(codebook())
    for training in (True, False):
        quantizer.train(training)
        quantizer(normals(N, D))
    for held, start in zip(quantizer.state, ones_start(codebook()), strict=True):
        assert torch.equal(held, start)


def test_updates_are_those_of_the_functions():
    quantizer = EmaCodebook(codebook(), decay=0.9, eps=1e-3)
    state = ones_start(codebook())
    for step in range(4):
        z = normals(N, D, seed=step)
        indices = quantizer(z).indices
        quantizer.update(z, indices, generator())
        state = codebooks.ema_update(state, z, indices, 0.9, 1e-3)
        for held, exact in zip(quantizer.state, state, strict=True):
            assert torch.equal(held, exact)


def test_restarts_follow_the_averages_and_keep_to_the_generator():
    quantizer = RestartedCodebook(codebook(), decay=0.5, threshold=4.0)
    state, one, two = ones_start(codebook()), generator(4), generator(4)
    restarted = 0
    for step in range(4):
        z = normals(N, D, seed=step)
        indices = quantizer(z).indices
        quantizer.update(z, indices, one)
        state = codebooks.ema_update(state, z, indices, 0.5, 1e-5)
        restarted += (state.counts < 4).sum().item()
        state = restart_unused(state, z, two, 4.0)
        for held, exact in zip(quantizer.state, state, strict=True):
            assert torch.equal(held, exact)
    assert restarted > 0


def test_restarts_bring_unused_codes_into_use():
    far = torch.cat([codebook(2), 100 + codebook(4)])
    z, used = normals(N, D), []
    for kind in AVERAGES:
        quantizer, source = kind(far), generator()
        for _ in range(3):
            quantizer.update(z, quantizer(z).indices, source)
        used.append(len(quantizer(z).indices.unique()))
    assert used[0] == 2
    assert used[1] == 6


@averages
def test_an_update_between_the_lookup_and_the_backward_pass_does_no_harm(kind):
    slopes = []
    for early in (False, True):
        quantizer, z = kind(codebook()), normals(N, D).requires_grad_()
        found = quantizer(z)
        if early:
            quantizer.update(z, found.indices, generator())
        (found.values.square().sum() + found.loss).backward()
        slopes.append(z.grad)
    assert torch.equal(*slopes)


@every
def test_the_state_can_be_stored_and_its_source_is_not_shared(make):
    quantizer, z = make(), normals(N, D)
    trained = copy.deepcopy(quantizer)
    trained.update(z, trained(z).indices, generator())
    again = make()
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again(z).values, trained(z).values)
    start = codebook()
    held = EmaCodebook(start)
    held.update(z, held(z).indices, generator())
    assert torch.equal(start, codebook())
    assert not torch.equal(held.codebook, start)


def test_cosines_choose_the_direction_and_the_decoder_sees_unit_codes():
    quantizer, z = CosineCodebook(codebook()), normals(N, D)
    cosines = functional.cosine_similarity(z[:, None], codebook(), dim=2)
    found = quantizer(z)
    assert torch.equal(found.indices, cosines.argmax(1))
    torch.testing.assert_close(found.values.norm(dim=1), torch.ones(N).double())
    chosen = cosines.amax(1)
    # |a - b|^2 = 2 - 2 cos for unit vectors.
    exact = 1.25 * (2 - 2 * chosen).mean() / D
    torch.testing.assert_close(found.loss, exact, rtol=1e-12, atol=0)
    for factor in (0.01, 100.0):
        scaled = quantizer(z * factor)
        assert torch.equal(scaled.indices, found.indices)
        torch.testing.assert_close(scaled.loss, found.loss, rtol=1e-12, atol=0)


def test_cosines_gradients_leave_the_length_alone():
    quantizer, z = CosineCodebook(codebook()), normals(N, D).requires_grad_()
    found, cotangent = quantizer(z), normals(N, D, seed=7)
    (slope,) = torch.autograd.grad((found.values * cotangent).sum(), z, retain_graph=True)
    direction = unit(z.detach())
    across = cotangent - (cotangent * direction).sum(1, keepdim=True) * direction
    exact = across / z.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(slope, exact, rtol=1e-11, atol=1e-13)
    at_z, at_codes = torch.autograd.grad(found.loss, (z, quantizer.codebook))
    for slope, place in ((at_z, z), (at_codes, quantizer.codebook)):
        along = (slope * place).sum(1)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-14)
        assert slope.abs().max() > 1e-4


def test_cosine_codes_keep_unit_length_where_they_are_used():
    quantizer = CosineCodebook(3 * codebook())
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(K).double())
    with torch.no_grad():
        quantizer.codebook.mul_(5)
    length = quantizer.decode(torch.arange(K)).norm(dim=1)
    torch.testing.assert_close(length, torch.ones(K).double())


def test_a_zero_vector_has_no_direction_and_a_finite_gradient():
    z = torch.zeros(2, D, dtype=torch.float64).requires_grad_()
    found = CosineCodebook(codebook())(z)
    (found.values.sum() + found.loss).backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() < 10
    assert torch.equal(unit(z), z)


def test_a_projection_is_its_parts():
    inner = EmaCodebook(codebook(d=LOW))
    quantizer, z = projected(inner), normals(N, D).requires_grad_()
    down, up = quantizer.down, quantizer.up
    found, low = quantizer(z), inner(z @ down)
    assert torch.equal(found.indices, low.indices)
    assert torch.equal(found.values, inner.codebook[low.indices] @ up)
    assert torch.equal(found.loss, low.loss)
    cotangent = normals(N, D, seed=7)
    leaves = (z, down, up)
    slopes = torch.autograd.grad((found.values * cotangent).sum(), leaves)
    by_hand = (
        cotangent @ up.T @ down.T,
        z.T @ cotangent @ up.T,
        inner.codebook[low.indices].T @ cotangent,
    )
    for slope, exact in zip(slopes, by_hand, strict=True):
        torch.testing.assert_close(slope, exact, rtol=1e-12, atol=1e-13)


def test_a_projection_updates_its_inner_averages():
    inner = EmaCodebook(codebook(d=LOW))
    quantizer, z = projected(inner), normals(N, D)
    indices = quantizer(z).indices
    low = (z @ quantizer.down).detach()
    exact = codebooks.ema_update(ones_start(codebook(d=LOW)), low, indices, 0.99, 1e-5)
    quantizer.update(z, indices, generator())
    for held, expected in zip(inner.state, exact, strict=True):
        assert torch.equal(held, expected)
    assert len(list(quantizer.parameters())) == 2
    assert len(list(projected().parameters())) == 3


def test_one_code_and_equal_codes():
    z = normals(N, D)
    for kind in (LossCodebook, EmaCodebook, RestartedCodebook, CosineCodebook):
        single = kind(codebook(1))
        assert single.codes == 1
        assert not single(z).indices.any()
        twins = kind(codebook(1).repeat(3, 1))
        assert not twins(z).indices.any()


def nan(x):
    return torch.where(torch.arange(len(x))[:, None] == 1, float("nan"), x)


UP = normals(LOW, D)
BAD = [
    (lambda: EmaCodebook(codebook(), decay=1.5), "decay: "),
    (lambda: EmaCodebook(codebook(), eps=-1.0), "eps: "),
    (lambda: RestartedCodebook(codebook(), threshold=-1.0), "threshold: "),
    (lambda: RestartedCodebook(codebook(), decay=-1.0), "decay: "),
    (lambda: CosineCodebook(codebook() * 0), "codebook: must have no zero row"),
    (lambda: ProjectedCodebook(LossCodebook(codebook(d=LOW)), nan(UP.T), UP), "down: must be fin"),
    (lambda: ProjectedCodebook(LossCodebook(codebook(d=LOW)), UP.T, nan(UP)), "up: must be finite"),
    (lambda: ProjectedCodebook(LossCodebook(codebook(d=LOW)), UP[0], UP), "down: must be rows"),
    (lambda: ProjectedCodebook(LossCodebook(codebook(d=LOW)), UP.T, UP.T), "up: must be "),
    (lambda: ProjectedCodebook(LossCodebook(codebook(d=LOW)), UP.T, UP.float()), "up: must fit"),
    (
        lambda: EmaCodebook(codebook()).update(nan(normals(N, D)), torch.zeros(N).long(), None),
        "z: ",
    ),
]
for _kind in (LossCodebook, EmaCodebook, RestartedCodebook, CosineCodebook):
    BAD += [
        (lambda f=_kind: f(codebook(), beta=-1.0), "beta: "),
        (lambda f=_kind: f(codebook(0)), "codebook: must have a code"),
        (lambda f=_kind: f(codebook()[0]), "codebook: must be rows"),
        (lambda f=_kind: f(nan(codebook())), "codebook: must be finite"),
    ]
for _make in QUANTIZERS.values():
    BAD += [
        (lambda f=_make: f()(nan(normals(N, D))), "z: "),
        (lambda f=_make: f()(normals(N, D + 1)), "z: "),
        (lambda f=_make: f()(normals(N)), "z: "),
        (lambda f=_make: f().decode(torch.tensor([K])), "indices: "),
        (lambda f=_make: f().decode(torch.tensor([-1])), "indices: "),
        (lambda f=_make: f().decode(torch.tensor([0.0])), "indices: "),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
