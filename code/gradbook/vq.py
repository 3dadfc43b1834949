"""Vector quantization: the front door of its chapter, and the quantizer that holds a codebook."""

from gradbook.codebooks import CodebookState, ema_update, perplexity, vq_loss
from gradbook.gumbel import straight_through
from gradbook.nearest import nearest_code
from gradbook.quantizers import EmaCodebook
from gradbook.scalar_quantization import finite_scalar_quantize

__all__ = [
    "CodebookState",
    "VectorQuantizer",
    "ema_update",
    "finite_scalar_quantize",
    "nearest_code",
    "perplexity",
    "straight_through",
    "vq_loss",
]

VectorQuantizer = EmaCodebook
