"""PixelCNN: a law that sums to 1, logits that see all of the past and nothing else, and its sampler."""

import pytest
import torch
from torch.nn import functional

from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise
from gradbook.priors import grids, pixelcnn
from gradbook.priors.pixelcnn import TYPE_A, TYPE_B, GatedLayer, PixelCNN, gate


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(height=2, width=2, codes=3, channels=4, layers=2):
    return PixelCNN(height, width, codes, channels, layers, generator())


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


@pytest.mark.parametrize(
    ("height", "width", "layers"), [(1, 1, 1), (2, 2, 1), (2, 3, 2), (3, 2, 3)]
)
def test_probabilities_sum_to_one(stirred, all_grids, height, width, layers):
    built = stirred(model(height, width, layers=layers))
    log_probs = built.log_prob(all_grids(height, width, 3))
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_probs.std() > 0.1


@pytest.mark.parametrize(("height", "width", "layers"), [(5, 5, 4), (3, 6, 5), (6, 3, 5)])
def test_a_position_sees_all_before_it_and_nothing_else(stirred, height, width, layers):
    built = stirred(model(height, width, channels=8, layers=layers), std=0.4)
    size = height * width
    past = torch.ones(size, size).triu(1).bool()
    # A rectifier may shut a path for one grid, not for all.
    found = torch.stack(
        [grids.influence(built.logits, integers(height, width, seed=s), 3) for s in range(5)]
    )
    assert (found[:, ~past] == 0).all()
    assert (found.amax(0)[past] > 1e-9).all()


def test_a_layer_less_does_not_reach_the_far_corner(stirred):
    built = stirred(model(5, 5, layers=3), std=0.4)
    found = grids.influence(built.logits, integers(5, 5), 3).view(5, 5, 5, 5)
    assert (found[0, :, 4] == 0).all()
    assert (found[1, 1:, 4, 1] > 0).all()


def test_one_stack_of_masked_kernels_has_a_blind_spot():
    """Why there are two: the code above and two to the right never reaches the centre."""
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])
    first = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    reach = torch.eye(25).view(25, 1, 5, 5)
    for kernel in (first, *4 * [mask]):
        reach = functional.conv2d(reach, kernel[None, None], padding=1)
    assert (reach[:, 0, 2, 2].view(5, 5)[1] > 0).tolist() == [True, True, True, True, False]
    assert (reach[:, 0, 2, 2].view(5, 5)[0] > 0).all()


def masked(layer, x, kernel, rows, columns):
    """A 3x3 convolution with a mask that leaves the kernel of the layer at the given places."""
    weight = torch.zeros(*layer.weight.shape[:2], 3, 3, dtype=torch.float64)
    for a, i in enumerate(rows):
        for b, j in enumerate(columns):
            weight[:, :, i, j] = kernel[:, :, a, b]
    return functional.conv2d(x, weight, layer.bias, padding=1)


@pytest.mark.parametrize(
    ("mask", "rows", "columns"),
    [(TYPE_A, (0,), (0,)), (TYPE_B, (0, 1), (0, 1))],
    ids=["A", "B"],
)
def test_kernels_are_what_a_mask_leaves_of_three_by_three(stirred, mask, rows, columns):
    """Rows and columns 0, 1, 2 of the full kernel are above, own, below and left, own, right."""
    layer = stirred(GatedLayer(3, mask, generator()))
    above, left = (torch.randn(2, 3, 4, 5, generator=generator(s)).double() for s in (1, 2))
    vertical = masked(layer.vertical, above, layer.vertical.weight, rows, (0, 1, 2))
    row = masked(layer.horizontal, left, layer.horizontal.weight, (1,), columns)
    change = layer.outward(gate(row + layer.across(vertical)))
    for ours, theirs in zip(layer(above, left), (gate(vertical), change), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_gate_is_the_papers():
    content, opening = torch.randn(2, 2, 3, 4, 5, generator=generator())
    found = gate(torch.cat([content, opening], 1))
    torch.testing.assert_close(found, content.tanh() / (1 + (-opening).exp()))


def test_the_horizontal_stack_is_residual_after_its_first_layer(stirred):
    """With a last map of zeros the second layer adds nothing."""
    two, one = stirred(model(layers=2)), stirred(model(layers=1))
    shared = {key: value for key, value in two.state_dict().items() if "rest" not in key}
    one.load_state_dict(shared)
    with torch.no_grad():
        two.rest[0].outward.weight.zero_()
        two.rest[0].outward.bias.zero_()
    codes = integers(4, 2, 2)
    torch.testing.assert_close(two.logits(codes), one.logits(codes), rtol=1e-12, atol=0)


def test_the_head_sees_what_is_positive_in_two_layers(stirred):
    built, codes, seen = stirred(model(3, 3)), integers(20, 3, 3), {}
    for name in ("hidden", "head"):
        layer = built.get_submodule(name)
        layer.register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: (*inputs, out)})
        )
    logits = built.logits(codes)
    (inward, hidden), (outward, last) = seen["hidden"], seen["head"]
    assert (hidden < 0).any()
    assert torch.equal(outward, hidden.relu())
    assert (inward >= 0).all()
    assert (inward == 0).any()
    assert torch.equal(logits, last.permute(0, 2, 3, 1))


def test_a_sampled_code_is_the_one_that_the_noise_picks(stirred):
    built, g = stirred(model(3, 4, codes=5)), noise(40, 3, 4, 5)
    drawn = built.sample(40, g)
    assert torch.equal(drawn, gumbel_max(built.logits(drawn).detach(), g))
    assert torch.equal(drawn, built.sample(40, g))
    assert len(drawn.unique()) == 5


def test_sampled_grids_have_the_law(stirred, require_law):
    built = stirred(model(), std=0.4)
    require_law(built.sample, built.log_prob, 2, 2, 3)


def test_the_start_is_of_the_generator_and_float32():
    first, second = model(), model()
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.dtype == torch.float32
    codes = integers(200, 7, 7, count=8)
    logits = model(7, 7, 8, 16, 6).logits(codes)
    assert logits.dtype == torch.float32
    assert 0.05 < logits.std() < 2


def test_every_weight_matters(stirred):
    built = stirred(model(3, 3, layers=3), std=0.5)
    built.log_prob(integers(20, 3, 3)).sum().backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_an_empty_batch_gives_an_empty_result():
    built, none = model(), torch.empty(0, 2, 2, dtype=torch.int64)
    assert built.logits(none).shape == (0, 2, 2, 3)
    assert built.log_prob(none).shape == (0,)
    assert built.sample(0, torch.empty(0, 2, 2, 3)).shape == (0, 2, 2)


BAD = [
    *(
        (lambda name=name: model(**{name: 0}), f"{name}: must be at least 1")
        for name in ("height", "width", "codes", "channels", "layers")
    ),
    (lambda: model().logits(integers(2, 2, 3)), "codes: must be \\[B, 2, 2\\]"),
    (lambda: model().log_prob(integers(2, 2, 2).double()), "codes: must be int64"),
    (lambda: model().log_prob(integers(2, 2, 2) + 3), "codes: must be from 0 to 2"),
    (lambda: model().sample(3, noise(2, 2, 2, 3)), "noise: must be \\(3, 2, 2, 3\\)"),
    (lambda: model().sample(2, noise(2, 2, 2, 3) / 0), "noise: must be finite"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_masks_say_what_a_layer_may_see():
    """A kernel and its sides keep the size of the grid."""
    for mask in (pixelcnn.TYPE_A, pixelcnn.TYPE_B):
        for kernel, sides in (mask[:2], mask[2:]):
            left, right, above, below = sides
            assert kernel == (above + below + 1, left + right + 1)
