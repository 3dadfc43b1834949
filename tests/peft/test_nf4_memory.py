"""Bits of a weight and bytes of a decoder, against the paper's numbers and against tensors."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from gradbook import transformer_sizes as sizes
from gradbook.live_memory import total_bytes
from gradbook.peft import nf4_linear, nf4_memory
from gradbook.training_memory import NF4_BITS


def test_bits_are_those_of_the_paper():
    assert nf4_memory.bits_per_parameter() == Fraction(9, 2)
    assert nf4_memory.bits_per_parameter(32) == 5
    assert nf4_memory.bits_per_parameter(64, 256) == NF4_BITS
    # Dettmers et al. 2023, section 3: 0.5 bits become 0.127, which saves 0.373.
    saved = nf4_memory.bits_per_parameter() - nf4_memory.bits_per_parameter(64, 256)
    assert round(float(saved), 3) == 0.373
    assert float(nf4_memory.bits_per_parameter(64, 256)) == 4.126953125


@pytest.mark.parametrize(
    ("kind", "second", "mean"), [(nf4_linear.Scales, None, 0), (nf4_linear.DoubleScales, 256, 4)]
)
def test_bits_are_those_of_the_tensors(kind, second, mean):
    linear = nn.Linear(256, 128, bias=False, dtype=torch.float32)
    layer = nf4_linear.NF4Linear(linear, 64, kind)
    bits = 256 * 128 * nf4_memory.bits_per_parameter(64, second)
    assert total_bytes(layer.buffers()) == bits / 8 + mean


def test_the_bytes_of_qwen_and_llama():
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert nf4_memory.linear_parameters(sizes.QWEN_7B) == linear
    qwen = nf4_memory.model_bytes(sizes.QWEN_7B)
    rest = 2 * 151_936 * 4096 + 32 * (3 + 2) * 4096 + 4096
    assert qwen == (linear * NF4_BITS / 8, 2 * rest)
    assert qwen.total == qwen.quantized + qwen.kept
    assert round(qwen.quantized / 1e9, 2) == 3.34
    assert round(qwen.total / 1e9, 2) == 5.83
    llama = nf4_memory.LLAMA_65B
    assert sizes.parameters(llama) == 65_285_660_672
    once, twice = (nf4_memory.model_bytes(llama, second=second) for second in (None, 256))
    assert round((once.total - twice.total) / 1e9, 2) == 3.02
    assert once.kept == twice.kept
    assert round(twice.total / 1e9, 1) == 34.5


def test_fewer_heads_of_keys_and_biases_are_counted():
    shape = sizes.Shape(11, 8, 3, 4, 2, 20, 0, 1, 1, 1)
    assert nf4_memory.linear_parameters(shape) == 3 * (64 + 32 + 32 + 64 + 3 * 160)
    bytes_ = nf4_memory.model_bytes(shape, block_size=32, second=None, kept=4)
    linear = nf4_memory.linear_parameters(shape)
    assert bytes_.quantized == linear * 5 / 8
    assert bytes_.kept == 4 * (11 * 8 + 3 * (8 + 4 + 4 + 16) + 8)
    # A part of a byte is a byte: 2016 weights take 1011.2.
    assert nf4_memory.model_bytes(shape, block_size=640).quantized == 1012


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="block_size: must be a positive integer"):
        nf4_memory.bits_per_parameter(0)
    with pytest.raises(ValueError, match="second: must be a positive integer"):
        nf4_memory.bits_per_parameter(64, 0)
    with pytest.raises(ValueError, match="kept: must be a positive integer"):
        nf4_memory.model_bytes(sizes.QWEN_7B, kept=0)
    with pytest.raises(ValueError, match="shape.width: must be"):
        nf4_memory.linear_parameters(sizes.QWEN_7B._replace(width=0))
