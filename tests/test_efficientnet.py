"""EfficientNet-Lite0: the file, the classes of photographs, and what its padding and stages do."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import efficientnet, photographs, pictures


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBOOK_DEVICE", "cpu")
        yield efficientnet.pretrained()


def uniform(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype)


def square_of(name):
    """The photograph's central square, at the size of the network's training."""
    image = pictures.from_levels(photographs.photograph(name)[None]).cpu()
    height, width = image.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[:, :, top : top + side, left : left + side]
    return F.interpolate(crop, (224, 224), mode="bilinear", antialias=True)


@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [("chelsea", 285, 0.35), ("coffee", 967, 0.9)],
)
def test_photographs_have_their_classes(network, name, kind, least):
    probabilities = network.logits(square_of(name)).softmax(-1)[0]
    assert probabilities.argmax() == kind
    assert probabilities[kind] > least


def test_parameters_are_counted(network):
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_the_five_stages_have_halved_sides(network):
    shapes = [tuple(f.shape) for f in network.features(uniform(2, 3, 40, 33))]
    channels = (16, 24, 40, 112, 320)
    sides = ((20, 17), (10, 9), (5, 5), (3, 3), (2, 2))
    assert shapes == [(2, c, *s) for c, s in zip(channels, sides, strict=True)]


def test_every_tap_stands_before_a_halving():
    strides = [s.stride if i == 0 else 1 for s in efficientnet.STAGES for i in range(s.repeats)]
    before = [i - 1 for i in range(1, len(strides)) if strides[i] == 2]
    assert (*before, len(strides) - 1) == efficientnet.TAPS


@settings(max_examples=40)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_convolution_is_that_of_a_larger_canvas(height, width, kernel, stride, seed):
    """TensorFlow's rule, output by output: centred if what is added is even, else one up and left."""
    layer = efficientnet.SameConv2d(2, 3, kernel, stride).double()
    layer.weight.data = uniform(3, 2, kernel, kernel, seed=seed, dtype=torch.float64)
    x = uniform(1, 2, height, width, seed=seed + 1, dtype=torch.float64)
    ours = layer(x)
    rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
    assert ours.shape == (1, 3, rows, columns)
    canvas = F.pad(x, (8, 8, 8, 8))
    tops = [
        max((n - 1) * stride + kernel - side, 0) // 2
        for n, side in ((rows, height), (columns, width))
    ]
    for i in range(rows):
        for j in range(columns):
            top, left = 8 - tops[0] + i * stride, 8 - tops[1] + j * stride
            patch = canvas[0, :, top : top + kernel, left : left + kernel]
            by_hand = (layer.weight * patch).sum((1, 2, 3))
            torch.testing.assert_close(ours[0, :, i, j], by_hand, rtol=1e-12, atol=1e-12)


def test_an_even_side_is_padded_below_and_right_alone():
    layer = efficientnet.SameConv2d(1, 1, 3, stride=2)
    layer.weight.data = torch.ones(1, 1, 3, 3)
    corner = torch.zeros(1, 1, 4, 4)
    corner[0, 0, 2, 2] = 1
    assert torch.equal(layer(corner)[0, 0], torch.ones(2, 2))
    corner = torch.zeros(1, 1, 4, 4)
    corner[0, 0, 1, 1] = 1
    assert torch.equal(layer(corner)[0, 0], torch.tensor([[1.0, 0], [0, 0]]))


def test_a_block_adds_its_input_only_where_it_fits():
    adds = [block.adds for block in efficientnet.EfficientNetLite0()._blocks]
    assert [i for i, added in enumerate(adds) if added] == [2, 4, 6, 7, 9, 10, 12, 13, 14]


def test_a_block_is_its_three_convolutions(network):
    block, x = network._blocks[6], uniform(2, 80, 5, 5)
    wide = F.relu6(block._bn0(F.conv2d(x, block._expand_conv.weight)))
    filtered = F.conv2d(wide, block._depthwise_conv.weight, padding=1, groups=480)
    narrow = block._bn2(F.conv2d(F.relu6(block._bn1(filtered)), block._project_conv.weight))
    torch.testing.assert_close(block(x), x + narrow)


def test_pixels_are_normalized_as_in_training(network):
    """What (x - 127) / 128 says of the 256 levels."""
    levels = torch.tensor([0.0, 127, 255]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    expected = torch.tensor([-127 / 128, 0, 1.0]).expand(1, 3, 1, 3)
    torch.testing.assert_close(network._normalized(levels / 255), expected, atol=1e-6, rtol=0)


def test_logits_are_a_linear_map_of_what_is_pooled(network):
    images = uniform(3, 3, 32, 32)
    pooled = network.pooled(images)
    assert pooled.shape == (3, 1280)
    assert (pooled >= 0).all()
    assert (pooled <= 6).all()
    by_hand = pooled @ network._fc.weight.T + network._fc.bias
    torch.testing.assert_close(network.logits(images), by_hand)


def test_an_image_does_not_see_the_others_even_in_training_mode(network):
    images = uniform(4, 3, 32, 32)
    parent = torch.nn.Sequential(network).train()
    assert not any(module.training for module in network.modules())
    torch.testing.assert_close(parent[0].logits(images)[:1], network.logits(images[:1]))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.logits(images)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_gradients_reach_images_and_no_weight(network):
    images = uniform(2, 3, 32, 32).requires_grad_()
    network.features(images)[-1].square().sum().backward()
    assert (images.grad != 0).flatten(1).any(1).all()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not network.logits(images.detach()).requires_grad


def test_the_gradient_is_that_of_differences():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = efficientnet.EfficientNetLite0().double()
    images = uniform(1, 3, 8, 8, dtype=torch.float64).requires_grad_()
    direction = uniform(1, 3, 8, 8, seed=1, dtype=torch.float64)

    def value(x):
        return sum(f.square().sum() for f in network.features(x))

    (slope,) = torch.autograd.grad(value(images), images)
    step = 1e-6 * direction
    with torch.no_grad():
        difference = (value(images + step) - value(images - step)) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-6, atol=1e-9)


def test_an_empty_batch_gives_empty_results(network):
    none = torch.empty(0, 3, 32, 32)
    assert [len(f) for f in network.features(none)] == 5 * [0]
    assert network.pooled(none).shape == (0, 1280)
    assert network.logits(none).shape == (0, 1000)


def test_a_default_device_and_type_of_torch_change_nothing(network, monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    images = uniform(1, 3, 32, 32)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = efficientnet.pretrained().logits(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, network.logits(images))


def test_the_global_generator_is_left_as_it_was():
    before = torch.random.get_rng_state()
    efficientnet.pretrained()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_package_is_not_imported():
    code = (
        "import sys; from gradbook import efficientnet; efficientnet.pretrained();"
        "print(efficientnet.PACKAGE in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_missing_package_or_file_says_what_to_run(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="make setup"):
        efficientnet.pretrained(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(FileNotFoundError, match="empty: run `make setup`"):
        efficientnet.pretrained(tmp_path / "empty")
    monkeypatch.setattr(efficientnet, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(FileNotFoundError, match="is not installed: run `make setup`"):
        efficientnet.pretrained()


def test_another_file_is_refused_before_it_is_read(tmp_path):
    content = bytearray(efficientnet.weights_file().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="has SHA-256"):
        efficientnet.pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "images: must be \\["),
        (torch.zeros(1, 1, 8, 8), "images: must be \\["),
        (torch.zeros(1, 3, 0, 8), "images: must be \\["),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "images: must be floating"),
        (torch.full((1, 3, 8, 8), float("nan")), "images: must be finite"),
    ],
)
@pytest.mark.parametrize("call", ["features", "pooled", "logits"])
def test_bad_input_is_named(network, call, images, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(network, call)(images)
