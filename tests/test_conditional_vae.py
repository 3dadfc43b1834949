import pytest
import torch
from torch import distributions

from gradbook import conditional_vae, normal_vae
from gradbook import noise as of_the_book
from gradbook.normal_vae import Posterior


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def standard_normal(*shape, seed):
    """On the CPU, where the images are."""
    return of_the_book.standard_normal(*shape, seed=seed).cpu()


MEANS = standard_normal(3, 2, seed=1)
LABELS = torch.tensor([2, 0, 1, 2, 2])
POSTERIOR = Posterior(standard_normal(5, 2, seed=2), standard_normal(5, 2, seed=3))


def two_kinds(n):
    """Images of eight pixels, the left half lit in one class and the right half in the other."""
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 8)
    images[labels == 0, :4] = 1
    images[labels == 1, 4:] = 1
    return images, labels


def small_model(seed=0):
    return normal_vae.build(8, 2, 16, torch.Generator().manual_seed(seed))


def test_divergence_is_torchs():
    q = distributions.Normal(POSTERIOR.mean, (POSTERIOR.log_variance / 2).exp())
    p = distributions.Normal(MEANS[LABELS], 1.0)
    expected = distributions.kl_divergence(q, p)
    torch.testing.assert_close(conditional_vae.kl(POSTERIOR, MEANS, LABELS), expected)


def test_means_at_zero_give_the_plain_divergence():
    found = conditional_vae.kl(POSTERIOR, torch.zeros(3, 2, dtype=torch.float64), LABELS)
    torch.testing.assert_close(found, normal_vae.kl(POSTERIOR))


def test_bound_is_that_of_the_parts():
    model, (x, labels) = small_model(), two_kinds(6)
    means, noise = MEANS[:2].float(), standard_normal(6, 2, seed=4).float()
    posterior = model.encoder(x)
    logits = model.decoder(posterior.mean + (posterior.log_variance / 2).exp() * noise)
    expected = distributions.Bernoulli(logits=logits).log_prob(x).sum(1)
    expected = expected - conditional_vae.kl(posterior, means, labels).sum(1)
    torch.testing.assert_close(conditional_vae.elbo(model, means, x, labels, noise), expected)


def test_class_means_get_a_gradient():
    model, (x, labels) = small_model(), two_kinds(4)
    means = MEANS[:2].float().requires_grad_()
    noise = torch.zeros(4, 2)
    conditional_vae.elbo(model, means, x, labels, noise).sum().backward()
    code = model.encoder(x).mean.detach()
    expected = torch.stack([(code[labels == k] - means[k]).sum(0) for k in range(2)])
    torch.testing.assert_close(means.grad, expected)


def test_training_moves_means_apart_and_raises_the_bound():
    model, (x, labels) = small_model(), two_kinds(200)
    noise = standard_normal(200, 2, seed=5).float()
    before = conditional_vae.elbo(model, torch.zeros(2, 2), x, labels, noise).mean()
    means = conditional_vae.fit(model, x, labels, 2, seed=0, steps=300, batch=50)
    after = conditional_vae.elbo(model, means, x, labels, noise).mean()
    assert after > before + 3
    assert (means[0] - means[1]).norm() > 2
    codes = model.encoder(x).mean
    assert (torch.cdist(codes, means).argmin(1) == labels).all()


def test_the_seed_decides_the_training():
    x, labels = two_kinds(40)
    runs = [
        conditional_vae.fit(small_model(), x, labels, 2, seed=s, steps=3, batch=10)
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_no_images_no_divergence():
    empty = Posterior(torch.zeros(0, 2), torch.zeros(0, 2))
    found = conditional_vae.kl(empty, MEANS.float(), torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0, 2)


@pytest.mark.parametrize(
    ("means", "labels", "message"),
    [
        (MEANS[:, :1], LABELS, "class_means"),
        (MEANS * float("nan"), LABELS, "class_means"),
        (MEANS, LABELS[:3], "labels"),
        (MEANS, LABELS + 1, "labels"),
        (MEANS, LABELS - 1, "labels"),
    ],
)
def test_bad_input(means, labels, message):
    with pytest.raises(ValueError, match=message):
        conditional_vae.kl(POSTERIOR, means, labels)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_labels_are_integers(kind):
    with pytest.raises(ValueError, match="labels: must be integers"):
        conditional_vae.kl(POSTERIOR, MEANS, LABELS.to(kind))


def test_noise_is_one_draw_for_each_image():
    x, labels = two_kinds(4)
    with pytest.raises(ValueError, match="noise"):
        conditional_vae.elbo(small_model(), MEANS[:2].float(), x, labels, torch.zeros(3, 4, 2))


def test_the_order_of_the_images_and_the_noise_have_seeds_of_their_own(monkeypatch):
    seeds = []

    class Generator(torch.Generator):
        def manual_seed(self, seed):
            seeds.append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Generator)
    model = small_model()
    seeds.clear()
    x, labels = two_kinds(10)
    conditional_vae.fit(model, x, labels, 2, seed=3, steps=1, batch=5)
    assert len(seeds) == len(set(seeds)) == 2
