"""The discriminator of patches: its shape, weights and function, and the field of one logit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradbook.patch_gan import PatchGAN, measured_field, receptive_field, slope_at_centre


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def images(*shape, seed=1):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def moved(channels=2, filters=2, layers=2):
    """In float64, with all weights, biases and running moments moved."""
    network = PatchGAN(channels, filters, layers, generator()).double()
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter += 0.2 * normals(*parameter.shape, seed=10 + i)
        for i, norm in enumerate(network.norms):
            norm.running_mean += normals(*norm.running_mean.shape, seed=50 + i)
            norm.running_var *= 2 + i
    return network


def published(network):
    """The layers in the order of the published code, around the same weights."""
    convs, norms = list(network.convs), list(network.norms)
    steps = [convs[0], nn.LeakyReLU(0.2)]
    for conv, norm in zip(convs[1:-1], norms, strict=True):
        steps += [conv, norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*steps, convs[-1])


def test_published_size():
    network = PatchGAN(3, 64, 3, generator())
    assert sum(p.numel() for p in network.parameters()) == 2_765_633
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert (network.kernels, network.strides) == ((4,) * 5, (2, 2, 2, 1, 1))
    widths = [(conv.in_channels, conv.out_channels) for conv in network.convs]
    assert widths == [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]


def test_channels_stop_at_eight_times_the_first():
    widths = [conv.out_channels for conv in PatchGAN(1, 2, 5, generator()).convs]
    assert widths == [2, 4, 8, 16, 16, 16, 1]


def test_layers_are_what_the_attributes_say():
    network = PatchGAN(1, 2, 4, generator())
    for conv, kernel, stride in zip(network.convs, network.kernels, network.strides, strict=True):
        assert (conv.kernel_size, conv.stride) == ((kernel, kernel), (stride, stride))
        assert conv.padding == (1, 1)


@pytest.mark.parametrize("mode", [True, False])
def test_function_is_the_published_one_on_pixels_from_minus_one_to_one(mode):
    network, x = moved().train(mode), images(3, 2, 16, 24)
    torch.testing.assert_close(network(x), published(network)(2 * x - 1), rtol=1e-12, atol=1e-12)


def test_initial_weights_have_the_published_laws():
    network = PatchGAN(3, 32, 2, generator())
    drawn = torch.cat([conv.weight.flatten() for conv in network.convs]).double() / 0.02
    scales = torch.cat([norm.weight for norm in network.norms]).double().sub(1) / 0.02
    for sample in (drawn, scales):
        n = len(sample)
        assert abs(sample.mean()) < 4.5 / n**0.5
        assert abs(sample.square().mean() - 1) < 4.5 * (2 / n) ** 0.5
    for layer in (*network.norms, network.convs[0], network.convs[-1]):
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    assert all(conv.bias is None for conv in network.convs[1:-1])


def test_weights_come_from_the_generator_alone_whatever_the_defaults():
    state = torch.get_rng_state()
    plain, other = PatchGAN(1, 2, 1, generator()), PatchGAN(1, 2, 1, generator(1))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = PatchGAN(1, 2, 1, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(plain.state_dict().values(), again.state_dict().values(), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert not torch.equal(plain.convs[0].weight, other.convs[0].weight)


def test_gradients_reach_all_weights_and_the_images():
    network, x = moved(), images(2, 2, 16, 16).requires_grad_()
    network(x).square().sum().backward()
    for tensor in (x, *network.parameters()):
        assert (tensor.grad != 0).any()


@pytest.mark.parametrize("mode", [True, False])
def test_an_empty_batch_gives_no_logits(mode):
    assert moved().train(mode)(images(0, 2, 16, 24)).shape == (0, 1, 2, 4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_least_image_gives_one_logit(layers):
    side = 3 * 2**layers
    network = PatchGAN(1, 2, layers, generator())
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="^images: "):
        network(torch.zeros(1, 1, side, side - 1))


def field_by_enumeration(kernels, strides):
    """Which pixels of a line the first output reads, layer by layer from the end."""
    seen = {0}
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        seen = {stride * i + j for i in seen for j in range(kernel)}
    return max(seen) - min(seen) + 1


@given(layers=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=5))
def test_recursion_counts_the_pixels(layers):
    kernels, strides = [k for k, _ in layers], [s for _, s in layers]
    assert receptive_field(kernels, strides) == field_by_enumeration(kernels, strides)


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_recursion_agrees_with_the_gradient(layers, side):
    network = PatchGAN(1, 2, layers, generator())
    assert receptive_field(network.kernels, network.strides) == side
    assert measured_field(network, 128) == side


def test_slope_is_that_of_the_middle_logit():
    network, size = moved(), 12
    network.eval()
    slope = slope_at_centre(network, size)
    grey = torch.full((1, 2, size, size), 0.5, dtype=torch.float64)
    middle = network(grey).shape[-1] // 2
    by_hand = torch.zeros(size, size, dtype=torch.float64)
    for pixel in range(2 * size * size):
        step = torch.zeros(grey.numel(), dtype=torch.float64)
        step[pixel] = 1e-6
        up, down = (network(grey + s * step.view_as(grey))[0, 0, middle, middle] for s in (1, -1))
        by_hand.view(-1)[pixel % size**2] += ((up - down) / 2e-6).abs().item()
    torch.testing.assert_close(slope, by_hand, rtol=1e-6, atol=1e-8)


def test_training_mode_couples_all_pixels_of_a_batch():
    """Batch normalization's moments run over images and places; without them a field is a field."""
    network, size = moved(layers=1), 32
    for mode, whole in ((True, True), (False, False)):
        x = images(2, 2, size, size).requires_grad_()
        logits = network.train(mode)(x)
        (slope,) = torch.autograd.grad(logits[0, 0, 7, 7], x)
        reached = (slope != 0).any(1)
        assert reached.all().item() is whole
        assert reached[1].any().item() is whole


def test_measuring_leaves_the_network_as_it_is():
    network = PatchGAN(1, 2, 1, generator())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured_field(network, 64)
    assert network.training
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_image_that_cuts_the_field_is_refused():
    """The middle logit reads rows 1 to 16: of 18 rows all are inside, of 16 the last is cut off."""
    network = PatchGAN(1, 2, 1, generator())
    assert measured_field(network, 18) == 16
    rows = slope_at_centre(network, 16).amax(1).nonzero().flatten().tolist()
    assert rows == list(range(1, 16))
    for size in (12, 16):
        with pytest.raises(ValueError, match="^size: the field reaches"):
            measured_field(network, size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchGAN(0, 2, 1, generator()), "channels: "),
        (lambda: PatchGAN(1, 0, 1, generator()), "filters: "),
        (lambda: PatchGAN(1, 2, 0, generator()), "layers: "),
        (lambda: receptive_field([4], []), "strides: "),
        (lambda: receptive_field([0], [1]), "kernels: "),
        (lambda: receptive_field([1], [0]), "strides: "),
        (lambda: measured_field(moved(), 8), "images: "),
        (lambda: moved()(images(2, 16, 16)), "images: "),
        (lambda: moved()(images(1, 3, 16, 16)), "images: "),
        (lambda: moved()(images(1, 2, 8, 16)), "images: "),
        (lambda: moved()(torch.zeros(1, 2, 16, 16).long()), "images: "),
        (lambda: moved()(images(1, 2, 16, 16) / 0), "images: must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@settings(max_examples=10)
@given(height=st.integers(12, 30), width=st.integers(12, 30))
def test_logits_are_one_for_every_place_of_the_last_kernel(height, width):
    network = PatchGAN(1, 1, 2, generator())
    shape = network(torch.zeros(1, 1, height, width)).shape[2:]
    assert shape == (height // 4 - 2, width // 4 - 2)
