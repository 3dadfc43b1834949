"""The autoencoder with discrete codes: places stay places, and every part sees its own axes."""

import math

import pytest
import torch
from torch import nn

from gradbook import vq_vae
from gradbook.quantizer_variants import ResidualCodebook, normal_codebook
from gradbook.quantizers import EmaCodebook, Quantized
from gradbook.vq_vae import VQVAE, build, compression

D, K = 5, 11


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_book(dtype=torch.float32):
    return EmaCodebook(normal_codebook(K, D, generator(7)).to(dtype))


def two_books():
    return ResidualCodebook([normal_codebook(k, D, generator(k)) for k in (4, 3)])


def model(quantizer=None, channels=2, seed=0):
    return build(channels, 6, D, 1, quantizer or one_book(), generator(seed))


def images(n=3, height=8, width=12, channels=2, seed=1):
    return torch.rand(n, channels, height, width, generator=generator(seed), dtype=torch.float32)


class Means(nn.Module):
    """Each patch of 4 by 4 becomes the mean of every channel: [B, C, h, w]."""

    def forward(self, x):
        return nn.functional.avg_pool2d(x, 4)


class Spread(nn.Module):
    """Each vector paints its patch of 4 by 4."""

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=4)


class Rounded(nn.Module):
    """Codes n stand for vectors (n, n / 100)."""

    codes = 100

    def forward(self, z):
        indices = z[:, 0].round().long()
        return Quantized(self.decode(indices), z.new_zeros(()), indices)

    def decode(self, indices):
        return torch.stack([indices.float(), indices / 100.0], 1)


@pytest.mark.parametrize("make", [one_book, two_books])
def test_an_image_decoded_from_its_codes_is_the_forward_pass(make):
    built, x = model(make()), images()
    built.eval()
    output = built(x)
    torch.testing.assert_close(built.decode(built.codes(x)), output.images)
    depth = () if make is one_book else (2,)
    assert built.codes(x).shape == (3, 2, 3, *depth)
    assert built.codes(x).dtype == torch.int64
    assert torch.equal(built.codes(x).flatten(0, 2), output.quantized.indices)


def test_shapes_and_types():
    built, x = model(), images()
    output = built(x)
    assert output.images.shape == x.shape
    assert output.vectors.shape == (3, 2, 3, D)
    assert torch.equal(output.vectors, built.vectors(x))
    assert output.quantized.values.shape == (18, D)
    assert output.images.dtype == torch.float32


def test_each_patch_gets_the_code_at_its_place():
    # Patches are painted with their own numbers; a swapped axis would put them elsewhere.
    grid = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    x = torch.stack([grid.float(), grid / 100.0], 1)
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    toy = VQVAE(Means(), Spread(), Rounded())
    assert torch.equal(toy.codes(x), grid)
    torch.testing.assert_close(toy(x).images, x)
    torch.testing.assert_close(toy.decode(grid), x)
    torch.testing.assert_close(toy.vectors(x)[1, 2, 3], torch.tensor([23.0, 0.23]))


def test_a_pixel_moves_only_the_vectors_around_it():
    built, x = model(), images(2, 28, 28)
    changed = x.clone()
    changed[1, :, 5, 17] += 1
    moved = (built.vectors(changed) != built.vectors(x)).any(-1)
    assert not moved[0].any()
    assert moved[1, 1, 4]
    rows, columns = moved[1].nonzero().unbind(1)
    # Patch (1, 4); the residual block looks one position further, convolutions a pixel or three.
    assert ((rows - 1).abs() <= 2).all()
    assert ((columns - 4).abs() <= 2).all()


def test_a_vector_paints_around_its_place():
    built = model()
    vectors = torch.randn(1, 7, 7, D, generator=generator(3))
    changed = vectors.clone()
    changed[0, 2, 5] += 1
    moved = (built.pixels(changed) != built.pixels(vectors)).any(1)[0]
    assert moved[8:12, 20:24].all()
    assert not moved[24:].any()
    assert not moved[:, :4].any()


def test_gradients_reach_the_encoder_through_the_codes():
    built, x = model(), images()
    output = built(x)
    output.images.square().sum().backward()
    for parameter in (*built.encoder.parameters(), *built.decoder.parameters()):
        assert parameter.grad.abs().sum() > 0


def test_the_weights_are_those_of_the_generator_whatever_the_defaults():
    before = torch.get_rng_state()
    first, second, third = model(seed=4), model(seed=4), model(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            fourth = model(one_book(), seed=4)
    finally:
        torch.set_default_dtype(torch.float32)
    for other in (second, fourth):
        for a, b in zip(first.encoder.parameters(), other.encoder.parameters(), strict=True):
            assert torch.equal(a, b)
    for parameter in fourth.decoder.parameters():
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
    assert not torch.equal(first.encoder.last.weight, third.encoder.last.weight)
    for name, parameter in first.named_parameters():
        if parameter.ndim > 1:
            fans = (parameter.shape[0] + parameter.shape[1]) * math.prod(parameter.shape[2:])
            bound = math.sqrt(6 / fans)
            assert 0.5 * bound < parameter.abs().max() <= bound, name
        else:
            assert not parameter.any()


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_a_code_stands_for_a_square(halvings):
    built = build(2, 4, D, 1, one_book(), generator(), halvings)
    x, (height, width) = images(1, 16, 24), (16 // 2**halvings, 24 // 2**halvings)
    assert built.vectors(x).shape == (1, height, width, D)
    assert built.codes(x).shape == (1, height, width)
    assert built(x).images.shape == built.decode(built.codes(x)).shape == x.shape
    assert built.vectors(x[:0]).shape == (0, height, width, D)
    assert built(x[:0]).images.shape == (0, 2, 16, 24)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_networks_are_rectified_between_layers_and_at_no_end(halvings):
    built, x = build(2, 4, D, 0, one_book(), generator(), halvings), images(2, 16, 16)
    h = x
    for i in range(halvings):
        h = nn.functional.conv2d(h, *conv(built.encoder.halves[i]), 2, 1).relu()
    vectors = nn.functional.conv2d(h, *conv(built.encoder.last))
    torch.testing.assert_close(built.encoder(x), vectors)
    h = nn.functional.conv2d(vectors, *conv(built.decoder.first), padding=1).relu()
    for i in range(halvings - 1):
        h = nn.functional.conv_transpose2d(h, *conv(built.decoder.doubles[i]), 2, 1).relu()
    again = nn.functional.conv_transpose2d(h, *conv(built.decoder.last), 2, 1)
    torch.testing.assert_close(built.decoder(vectors), again)


def conv(layer):
    return layer.weight, layer.bias


def test_without_a_number_there_are_two_halvings():
    two = build(2, 6, D, 1, one_book(), generator(), 2)
    pairs = zip(model().parameters(), two.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert vq_vae.PATCH == 4


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 12), (0, 16), (16, 0)])
def test_the_encoder_knows_which_sides_it_takes(height, width):
    built = build(2, 4, D, 1, one_book(), generator(), 3)
    for encode in (built, built.encoder):
        with pytest.raises(ValueError, match="^images: must be .*, sides multiples of 8, got"):
            encode(torch.zeros(2, 2, height, width))
    built = build(2, 4, D, 1, one_book(), generator(), 1)
    if height and width:
        assert built.vectors(torch.zeros(2, 2, height, width)).shape[1:3] == (height / 2, width / 2)


def test_the_number_of_weights_is_counted():
    built = build(1, 32, 16, 2, nn.Identity(), generator())
    block = 32 * 32 * 9 + 32 + 32 * 32 + 32
    encoder = (16 * 32 + 32) + (32 * 32 * 16 + 32) + 2 * block + (32 * 16 + 16)
    decoder = (16 * 32 * 9 + 32) + 2 * block + (32 * 32 * 16 + 32) + (32 * 16 + 1)
    assert sum(p.numel() for p in built.encoder.parameters()) == encoder
    assert sum(p.numel() for p in built.decoder.parameters()) == decoder


def test_a_block_without_weights_passes_its_input_on():
    block = vq_vae.Residual(3)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 4, 4, generator=generator())
    assert torch.equal(block(x), x)


def test_no_images_give_no_codes():
    built, none = model(), images(0)
    output = built(none)
    assert output.images.shape == (0, 2, 8, 12)
    assert output.quantized.loss == 0
    assert built.codes(none).shape == (0, 2, 3)
    assert built.decode(built.codes(none)).shape == (0, 2, 8, 12)


def test_compression_counts_bits():
    assert compression(28, 28, 1, (7, 7), 128) == (6272, 343)
    # The papers' ImageNet example: 42.7 times.
    rate = compression(128, 128, 3, (32, 32), 512)
    assert rate.bits_in / rate.bits_out == pytest.approx(42.67, abs=0.01)
    assert compression(4, 4, 1, (1, 1), 1).bits_out == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(0, 6, D, 1, one_book(), generator()), "channels: "),
        (lambda: build(1, 0, D, 1, one_book(), generator()), "width: "),
        (lambda: build(1, 6, 0, 1, one_book(), generator()), "dim: "),
        (lambda: build(1, 6, D, -1, one_book(), generator()), "blocks: "),
        (lambda: build(1, 6, D, 1, one_book(), generator(), 0), "halvings: must be positive"),
        (lambda: model()(images().long()), "images: must be \\[.*floating, got torch.int64"),
        (lambda: model().encoder(images()[0]), "images: must be \\["),
        (lambda: model()(images(height=10)), "images: must be \\["),
        (lambda: model().vectors(images(width=9)), "images: must be \\["),
        (lambda: model().codes(images()[0]), "images: must be \\["),
        (lambda: model()(images(channels=3)), "images: must be \\[B, 2, H, W\\]"),
        (lambda: model()(images() / 0), "images: must be finite"),
        (lambda: model().decode(torch.zeros(4, dtype=torch.int64)), "codes: must be \\["),
        (lambda: model().decode(torch.full((1, 2, 2), K)), "indices: "),
        (lambda: compression(0, 28, 1, (7, 7), 128), "height: "),
        (lambda: compression(28, 0, 1, (7, 7), 128), "width: "),
        (lambda: compression(28, 28, 0, (7, 7), 128), "channels: "),
        (lambda: compression(28, 28, 1, (7, 0), 128), "grid: "),
        (lambda: compression(28, 28, 1, (7, 7), 0), "codes: "),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
