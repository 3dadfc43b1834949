"""Tiny models for the tests of what is put into one: in plain torch, BERT and GPT-2, all in float64."""

import pytest
import torch
import transformers
from torch import nn

WIDTH, HEADS, INNER, LAYERS, VOCABULARY = 8, 2, 12, 2, 17


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, dtype=torch.float64)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        weights = (q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """The end of a branch: linear, dropout, the residual sum, and the norm."""

    def __init__(self, inputs):
        super().__init__()
        self.dense = linear(inputs, WIDTH)
        self.dropout = nn.Dropout(0.0)
        self.LayerNorm = nn.LayerNorm(WIDTH, dtype=torch.float64)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Output(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": linear(WIDTH, INNER)})
        self.output = Output(INNER)

    def forward(self, x):
        x = self.attention["output"](self.attention["self"](x), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class Transformer(nn.Module):
    """BERT's layers under BERT's names: ids [B, T] to hidden states [B, T, WIDTH]."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
        layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x


def seeded(build):
    """Builds a model whose weights do not depend on the tests before, nor touch those after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double().eval()


def bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertModel(config)


def gpt2():
    """Its ``lm_head`` is tied to the embedding; its linear layers are ``Conv1D``."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=INNER,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture
def plain():
    """A tiny encoder in plain torch: ``plain(ids)`` is its hidden states."""
    return seeded(Transformer)


@pytest.fixture
def tiny_bert():
    """A tiny ``BertModel``: ``tiny_bert(ids).last_hidden_state``."""
    return seeded(bert)


@pytest.fixture
def tiny_gpt2():
    """A tiny ``GPT2LMHeadModel``: ``tiny_gpt2(ids).logits``."""
    return seeded(gpt2)


@pytest.fixture
def ids():
    """Token ids [3, 5] of the tiny models."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (3, 5), generator=generator)
