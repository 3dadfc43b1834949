"""A tiny encoder with random weights, and tokens for it."""

import pytest
import torch
from transformers import BertConfig, BertModel

from gradbook.language import encoder

WORDS, PLACES = 30, 12


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


@pytest.fixture
def tiny():
    """Makes a classifier of width 8 with two layers, always the same one of a seed."""

    def make(seed=0, classes=3, dtype=torch.float64):
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=PLACES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            network = BertModel(config, add_pooling_layer=False).to(dtype)
        with torch.no_grad():
            for name, part in network.named_parameters():
                part.normal_(float("LayerNorm.weight" in name), 0.3, generator=generator)
        return encoder.with_head(network, classes, generator)

    return make


@pytest.fixture
def texts():
    """Makes random tokens of 1 to 12 pieces, padded on the right to 12."""

    def make(count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, WORDS, (count, PLACES), generator=generator)
        lengths = torch.randint(1, PLACES + 1, (count, 1), generator=generator)
        mask = (torch.arange(PLACES) < lengths).long()
        return encoder.Tokens(ids * mask, mask)

    return make
