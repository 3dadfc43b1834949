"""Stand-ins for what the experiments on texts read: a tiny encoder, and sentences of our own."""

import copy
import functools

import pytest
import torch
from transformers import BertConfig, BertModel

from gradbook.language import encoder, reviews, splits
from gradbook.language.encoder import Tokens
from gradbook.language.splits import Rows

WORDS, WIDTH, INNER, LAYERS = 30_522, 16, 32, 6


@functools.cache
def built():
    """Random weights, MiniLM's vocabulary and its number of layers."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, part in model.named_parameters():
            part.normal_(float("LayerNorm.weight" in name), 0.3, generator=generator)
    return model


def network():
    """A copy of its own at every call, as a file is read anew."""
    return copy.deepcopy(built())


@pytest.fixture
def tiny_encoder(monkeypatch):
    """Puts a tiny encoder in the place of the pretrained one, on the CPU."""
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")
    monkeypatch.setattr(encoder, "pretrained_encoder", network)
    return network


@pytest.fixture
def sentences():
    """Makes rows of random ids, 3 to 9 pieces padded to 9, with random labels."""

    def make(n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1000, WORDS, (n, 9), generator=generator)
        lengths = torch.randint(3, 10, (n, 1), generator=generator)
        mask = (torch.arange(9) < lengths).long()
        labels = torch.randint(2, (n,), generator=generator)
        return Rows(Tokens(ids * mask, mask), labels)

    return make


@pytest.fixture
def tiny_movies(monkeypatch, sentences):
    """Puts random rows in the place of the sentences about films."""
    split = splits.Split(sentences(60, 1), sentences(30, 2), sentences(210, 3))
    monkeypatch.setattr(splits, "movies", lambda: split)
    return split


@pytest.fixture
def tiny_reviews(monkeypatch):
    """Puts snippets of our own in the place of the published ones; no two are alike."""

    def put(**scores):
        def reviews_of(kind):
            texts = tuple(f"{kind} {i}" for i in range(len(scores[kind])))
            return reviews.Snippets(texts, torch.tensor(scores[kind], dtype=torch.float64))

        monkeypatch.setattr(reviews, "reviews", reviews_of)

    return put
