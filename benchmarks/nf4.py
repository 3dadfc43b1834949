"""Cases of 4-bit codes: a matrix of weights to half-bytes and back, against bitsandbytes.

Both give the same bytes, scales and values, to the bit.
"""

import torch
from bitsandbytes import functional
from torch import Tensor

from benchmarks.timing import Case, Side
from gradbook.peft.nf4 import dequantize_nf4, quantize_nf4

SEED = 23
SIDE, BLOCK = 4096, 64


def _weights() -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float32)


def quantize_case() -> tuple[Side, Side]:
    """Weights to packed bytes, which are returned; the scales are computed too."""
    w = _weights()

    def ours() -> Tensor:
        return quantize_nf4(w, BLOCK)[0]

    def peer() -> Tensor:
        packed, _ = functional.quantize_4bit(w, blocksize=BLOCK, quant_type="nf4")
        return packed.flatten()

    return ours, peer


def dequantize_case() -> tuple[Side, Side]:
    """Packed bytes and scales to weights."""
    w = _weights()
    packed, absmax = quantize_nf4(w, BLOCK)
    theirs, state = functional.quantize_4bit(w, blocksize=BLOCK, quant_type="nf4")

    def ours() -> Tensor:
        return dequantize_nf4(packed, absmax, w.shape)

    def peer() -> Tensor:
        return functional.dequantize_4bit(theirs, state)

    return ours, peer


CASES = (
    Case(
        "4096 x 4096 weights to NF4, blocks of 64, float32",
        "bitsandbytes.functional.quantize_4bit",
        0.0,
        quantize_case,
    ),
    Case(
        "the same weights back",
        "bitsandbytes.functional.dequantize_4bit",
        0.0,
        dequantize_case,
    ),
)
