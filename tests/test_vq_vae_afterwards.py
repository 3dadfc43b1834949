"""Codes put into a trained autoencoder afterwards."""

import copy

import pytest
import torch

from gradbook import vq_vae_training as training
from gradbook.k_means import k_means, k_means_plus_plus
from gradbook.quantizer_variants import Identity
from gradbook.vq_vae_afterwards import FixedCodebook, k_means_afterwards, tune_decoder

K, D = 5, 3


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=40):
    return torch.rand(n, 1, 8, 8, generator=generator(1), dtype=torch.float32)


def plain():
    return training.started(lambda vectors, draws: Identity(), images(), 0, width=4, dim=D)


def later(model=None, steps=4):
    model = model or plain()
    return k_means_afterwards(model, training.vectors(model, images()), K, generator(9), steps)


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def codebook(k=K):
    return torch.randn(k, D, generator=generator(2), dtype=torch.float64)


def test_a_fixed_codebook_gives_the_nearest_code_and_passes_the_gradient():
    quantizer = FixedCodebook(codebook())
    z = torch.randn(30, D, generator=generator(3), dtype=torch.float64, requires_grad=True)
    found = quantizer(z)
    distances = (z[:, None] - codebook()).square().sum(-1)
    assert torch.equal(found.indices, distances.argmin(1))
    assert torch.equal(found.values, codebook()[found.indices])
    assert torch.equal(quantizer.decode(found.indices), found.values)
    assert (found.loss.item(), found.loss.dtype) == (0, torch.float64)
    weights = torch.randn(30, D, generator=generator(4), dtype=torch.float64)
    (found.values * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    assert quantizer.codes == K


def test_nothing_trains_a_fixed_codebook():
    given = codebook()
    quantizer = FixedCodebook(given)
    assert not list(quantizer.parameters())
    quantizer.update(codebook(9), torch.zeros(9, dtype=torch.int64), generator())
    given.zero_()
    assert torch.equal(quantizer.codebook, codebook())
    assert quantizer(codebook(0)).values.shape == (0, D)


def test_the_codes_afterwards_are_k_means_of_the_vectors():
    model = plain()
    vectors = training.vectors(model, images())
    before = copy.deepcopy(model)
    found = later(model)
    start = k_means_plus_plus(vectors, K, generator(9))
    assert torch.equal(found.quantizer.codebook, k_means(vectors, start, 4))
    assert found.quantizer.codes == K
    assert same(model, before)
    assert isinstance(model.quantizer, Identity)
    assert same(found.encoder, model.encoder)
    assert same(found.decoder, model.decoder)
    assert found.encoder is not model.encoder
    assert found.decoder is not model.decoder


def test_as_many_codes_as_vectors_change_nothing():
    model, x = plain(), images(2)
    vectors = training.vectors(model, x)
    found = k_means_afterwards(model, vectors, len(vectors), generator(), 1)
    torch.testing.assert_close(found(x).images, model(x).images)


def test_tuning_trains_the_decoder_alone():
    model, x = later(), images()
    before = copy.deepcopy(model)
    tuned, curve = tune_decoder(model, x, 3, 20, 1e-2)
    assert same(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert same(tuned.encoder, model.encoder)
    assert same(tuned.quantizer, model.quantizer)
    assert not same(tuned.decoder, model.decoder)
    assert torch.equal(training.codes(tuned, x), training.codes(model, x))
    assert training.psnr(tuned, x) > training.psnr(model, x)
    assert curve.values == []
    assert curve.seconds > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FixedCodebook(codebook(0)), "codebook: must have a code"),
        (lambda: FixedCodebook(codebook()[0]), "codebook: must be"),
        (lambda: FixedCodebook(codebook() / 0), "codebook: must be finite"),
        (lambda: FixedCodebook(codebook())(codebook()[:, :2]), "codebook: |z: "),
        (lambda: FixedCodebook(codebook()).decode(torch.tensor([K])), "indices: "),
        (lambda: FixedCodebook(codebook()).decode(torch.tensor([-1])), "indices: "),
        (lambda: k_means_afterwards(plain(), torch.zeros(9, D), 0, generator(), 1), "k: "),
        (lambda: later(steps=-1), "steps: "),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^({message})"):
        call()
