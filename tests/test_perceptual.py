"""The perceptual distance against a loop, and its ranking of distortions of one squared error."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import efficientnet, perceptual, photographs, pictures


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def two_stages(seed=0):
    """Random convolutions of two resolutions."""
    first, second = normal(4, 3, 3, 3, seed=seed), normal(5, 4, 3, 3, seed=seed + 1)

    def features(images):
        one = F.conv2d(images, first, padding=1)
        return [one, F.conv2d(one.tanh(), second, stride=2, padding=1)]

    return features


def by_hand(x, y, features):
    """Place by place, as the equation stands."""
    totals = []
    for a, b in zip(x, y, strict=True):
        total = 0.0
        for f, g in zip(features(a[None]), features(b[None]), strict=True):
            places = [(i, j) for i in range(f.shape[2]) for j in range(f.shape[3])]
            for i, j in places:
                u, v = f[0, :, i, j], g[0, :, i, j]
                u, v = u / u.square().sum().sqrt(), v / v.square().sum().sqrt()
                total += (u - v).square().sum() / len(places)
        totals.append(total)
    return torch.stack(totals)


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBOOK_DEVICE", "cpu")
        yield efficientnet.pretrained()


@settings(max_examples=15)
@given(
    b=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_distance_is_that_of_a_loop(b, height, width, seed):
    x, y = (normal(b, 3, height, width, seed=seed + i) for i in range(2))
    features = two_stages(seed)
    ours = perceptual.perceptual_distance(x, y, features)
    assert ours.shape == (b,)
    torch.testing.assert_close(ours, by_hand(x, y, features), rtol=1e-8, atol=1e-10)


def test_distance_is_zero_at_equality_and_symmetric(network):
    x, y = (normal(3, 3, 8, 8, seed=i) for i in range(2))
    for features in (two_stages(), network.features):
        there = perceptual.perceptual_distance(x, y, features)
        assert (there > 0.01).all()
        assert torch.equal(there, perceptual.perceptual_distance(y, x, features))
        same = perceptual.perceptual_distance(x, x.clone(), features)
        assert torch.equal(same, torch.zeros_like(same))


def test_distance_sees_directions_alone():
    """Scaled features are no further; opposite ones are 4 away, the most, and orthogonal ones 2."""
    x = normal(2, 3, 4, 4)

    def identity(images):
        return [images]

    assert perceptual.perceptual_distance(x, 3 * x, identity).abs().max() < 1e-12
    opposite = perceptual.perceptual_distance(x, -2 * x, identity)
    torch.testing.assert_close(opposite, torch.full((2,), 4.0).double(), rtol=1e-8, atol=0)
    one, two = torch.zeros(2, 1, 3, 4, 4).double()
    one[:, 0], two[:, 1] = 1, 7
    orthogonal = perceptual.perceptual_distance(one, two, identity)
    torch.testing.assert_close(orthogonal, torch.full((1,), 2.0).double(), rtol=1e-8, atol=0)


def test_gradients_are_those_of_differences_in_both():
    x, y = (normal(2, 3, 3, 3, seed=i).requires_grad_() for i in range(2))
    features = two_stages()
    assert torch.autograd.gradcheck(
        lambda a, b: perceptual.perceptual_distance(a, b, features), (x, y)
    )


def test_the_gradient_is_finite_where_a_place_has_no_feature():
    x, y = torch.zeros(1, 3, 2, 2).double().requires_grad_(), normal(1, 3, 2, 2)
    distance = perceptual.perceptual_distance(x, y, lambda images: [images])
    torch.testing.assert_close(distance, torch.ones(1).double(), rtol=1e-8, atol=0)
    (slope,) = torch.autograd.grad(distance.sum(), x)
    assert slope.isfinite().all()


def test_gradients_reach_a_reconstruction_through_the_network(network):
    x, y = normal(2, 3, 32, 32).float().requires_grad_(), normal(2, 3, 32, 32, seed=1).float()
    (slope,) = torch.autograd.grad(perceptual.perceptual_distance(x, y, network.features).sum(), x)
    assert slope.isfinite().all()
    assert (slope != 0).flatten(1).any(1).all()


@settings(max_examples=20)
@given(
    width=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_blur_is_a_mean_of_neighbours(width, height, seed):
    images, reach = normal(1, 2, height, 4, seed=seed), width // 2
    ours = perceptual.blurred(images, width)
    for i in range(height):
        for j in range(4):
            rows = [min(max(i + k, 0), height - 1) for k in range(-reach, reach + 1)]
            columns = [min(max(j + k, 0), 3) for k in range(-reach, reach + 1)]
            square = images[:, :, rows][:, :, :, columns]
            torch.testing.assert_close(
                ours[:, :, i, j], square.mean((2, 3)), rtol=1e-10, atol=1e-12
            )


def test_distortions_have_one_squared_error_and_their_own_shape():
    images, noise = normal(3, 3, 8, 8), normal(3, 3, 8, 8, seed=1)
    changes = {k: v - images for k, v in perceptual.distorted(images, noise, 3).items()}
    assert list(changes) == ["blur", "noise", "brightness", "contrast"]
    blur = perceptual.blurred(images, 3) - images
    torch.testing.assert_close(changes["blur"], blur, rtol=1e-10, atol=1e-12)
    expected = blur.square().mean((1, 2, 3))
    for change in changes.values():
        torch.testing.assert_close(change.square().mean((1, 2, 3)), expected, rtol=1e-10, atol=0)
    for name, along in (("noise", noise), ("contrast", images.mean((2, 3), keepdim=True) - images)):
        cosine = F.cosine_similarity(changes[name].flatten(1), along.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(3).double(), rtol=1e-10, atol=0)
    assert (changes["brightness"] > 0).all()
    assert changes["brightness"].flatten(1).std(1).max() < 1e-12


def test_ranking_is_the_distance_of_each_distortion():
    images, noise, features = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1), two_stages()
    ours = perceptual.ranked(images, noise, features, 5)
    changed = perceptual.distorted(images, noise, 5)
    assert list(ours) == list(changed)
    for name, distance in ours.items():
        other = perceptual.perceptual_distance(changed[name], images, features)
        assert torch.equal(distance, other)


def test_the_network_ranks_blur_and_noise_far_above_brightness(network):
    """On held-out patches of 32 pixels that are not almost flat, as they are."""
    cut = pictures.from_levels(photographs.held_out_patches(32, 64)).cpu()
    patches = cut[cut.flatten(1).std(1) > 0.05]
    noise = normal(*patches.shape).float()
    distances = perceptual.ranked(patches, noise, network.features, 3)
    assert len(patches) > 80
    for name in ("blur", "noise"):
        ratio = distances[name] / distances["brightness"]
        assert ratio.median() > 40
        assert ratio.quantile(0.1) > 10
        assert distances[name].mean() > 2 * distances["contrast"].mean()


def test_an_empty_batch_gives_empty_results(network):
    none = torch.empty(0, 3, 32, 32)
    assert perceptual.perceptual_distance(none, none, network.features).shape == (0,)
    ranked = perceptual.ranked(none, none, network.features)
    assert [d.shape for d in ranked.values()] == 4 * [(0,)]


X, FLAT = normal(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.3).double()
NAN = X * float("nan")
HALF_FLAT = torch.cat([X[:1], FLAT[:1]])
BAD = [
    (lambda: perceptual.perceptual_distance(X[0], X[0], two_stages()), "x: must be \\["),
    (lambda: perceptual.perceptual_distance(X, X[:1], two_stages()), "y: must have the shape"),
    (lambda: perceptual.perceptual_distance(NAN, X, two_stages()), "x: must be finite"),
    (lambda: perceptual.perceptual_distance(X, NAN, two_stages()), "y: must be finite"),
    (lambda: perceptual.blurred(X, 2), "width: must be odd"),
    (lambda: perceptual.blurred(X, -1), "width: must be odd"),
    (lambda: perceptual.blurred(X[0], 3), "images: must be \\["),
    (lambda: perceptual.distorted(X, X, 1), "width: must be at least 3"),
    (lambda: perceptual.distorted(X, X, 4), "width: must be odd"),
    (lambda: perceptual.distorted(X, X[:1]), "noise: must have the shape"),
    (lambda: perceptual.distorted(X[0], X[0]), "images: must be \\["),
    (lambda: perceptual.distorted(NAN, X), "images: must be finite"),
    (lambda: perceptual.distorted(X, NAN), "noise: must be finite"),
    (lambda: perceptual.distorted(X, 0 * X), "noise: must not be zero"),
    (lambda: perceptual.distorted(HALF_FLAT, X), "images: must not be of one colour"),
    (lambda: perceptual.ranked(FLAT, X, two_stages()), "images: must not be of one colour"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
