"""Priors over grids of codes: tables of frequencies, PixelCNN and a causal transformer.

A grid holds integers from 0 to K - 1, [B, h, w]. Every prior is a chain of conditionals in reading
order: the law of a code given all codes before it. Log-probabilities are in nats.
"""

from gradbook.priors.counting import (
    frequencies,
    position_frequencies,
    table_bits,
    table_log_prob,
    uniform_log_prob,
)
from gradbook.priors.flops import pixelcnn_flops, steps_for, training_flops, transformer_flops
from gradbook.priors.grids import grid_noise, influence, mean_bits
from gradbook.priors.images import LevelBits, decoded, level_bits, pooled
from gradbook.priors.pixelcnn import PixelCNN
from gradbook.priors.training import bits_per_code, fit
from gradbook.priors.transformer import CausalTransformer

__all__ = [
    "CausalTransformer",
    "LevelBits",
    "PixelCNN",
    "bits_per_code",
    "decoded",
    "fit",
    "frequencies",
    "grid_noise",
    "influence",
    "level_bits",
    "mean_bits",
    "pixelcnn_flops",
    "pooled",
    "position_frequencies",
    "steps_for",
    "table_bits",
    "table_log_prob",
    "training_flops",
    "transformer_flops",
    "uniform_log_prob",
]
