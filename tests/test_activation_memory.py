"""Bytes of activations: the paper's sums, and every byte that the meter finds in an encoder."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel

from gradbook import activation_memory as memory
from gradbook.activation_memory import Stack
from gradbook.live_memory import training_step_peak

FEED_FORWARD = 20
LOSS = 4
stacks = st.builds(
    Stack,
    st.integers(1, 96),
    *[st.integers(1, 4096)] * 2,
    st.integers(1, 20_000),
    st.integers(1, 128),
)


@given(stacks)
def test_formulas_of_the_paper(stack):
    layers, s, b, h, a = stack
    one = s * b * h * 34 + 5 * a * s * s * b
    assert memory.activations(stack) == layers * one
    assert memory.selective_activations(stack) == layers * 34 * s * b * h
    assert memory.full_activations(stack) == 2 * s * b * h * (layers - 1) + one


def test_the_paper_sums_of_the_parts():
    """Attention 11 s b h + 5 a s^2 b, feed-forward 19 s b h, two norms 4 s b h."""
    groups = {"norm": 0, "feed-forward": 0, "attention": 0}
    for name, size in memory.TOKEN_TERMS.items():
        inner = "feed-forward" if name.startswith(("feed", "GELU")) else "attention"
        groups["norm" if "norm's" in name else inner] += size
    assert groups == {"norm": 4, "feed-forward": 19, "attention": 11}
    assert sum(memory.PAIR_TERMS.values()) == 5


def test_gpt_3_keeps_34_of_114_without_the_pairs():
    """Section 5: for GPT-3, a = 96, s = 2048 and h = 12288, the pairs are 80 beside 34."""
    stack = Stack(96, 2048, 1, 12_288, 96)
    assert memory.activations(stack) * 34 == memory.selective_activations(stack) * (34 + 80)


@given(stacks, st.integers(1, 9))
def test_activations_grow_with_the_batch(stack, times):
    more = stack._replace(batch=times * stack.batch)
    for count in (memory.activations, memory.selective_activations, memory.full_activations):
        assert count(more) == times * count(stack)


@given(stacks)
def test_two_bytes_and_one_for_the_mask_are_the_papers_layer(stack):
    """What is left over: statistics, the embedding's norm and dropout, and the output."""
    terms = memory.encoder_activations(stack, 4 * stack.width, size=2, mask=1)
    tokens = stack.sequence * stack.batch
    over = 8 * (2 * stack.layers + 1) * tokens + (2 + 2 + 1) * tokens * stack.width
    assert sum(terms.values()) == memory.activations(stack) + over


def encoder(stack, attention, dropout):
    config = BertConfig(
        vocab_size=13,
        hidden_size=stack.width,
        num_hidden_layers=stack.layers,
        num_attention_heads=stack.heads,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=stack.sequence,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config._attn_implementation = attention
    model = BertModel(config, add_pooling_layer=False)
    return model.to(device="cpu", dtype=torch.float32).train()


def measured(stack, attention, dropout=0.0, padded=False):
    """The meter on inputs that were there before: none of them is built within the model."""
    model = encoder(stack, attention, dropout)
    zeros = torch.zeros(stack.batch, stack.sequence, dtype=torch.int64, device="cpu")
    inputs = {"input_ids": zeros, "token_type_ids": zeros, "position_ids": zeros}
    if padded:
        mask = torch.ones_like(zeros)
        mask[0, -1] = 0
        inputs["attention_mask"] = mask

    def loss():
        return model(**inputs).last_hidden_state.square().mean()

    return training_step_peak(model, loss, torch.optim.SGD(model.parameters())).activations


STACKS = [Stack(1, 5, 3, 8, 2), Stack(3, 7, 2, 12, 4), Stack(2, 1, 1, 6, 6)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("stack", STACKS[:2])
def test_every_byte_of_an_encoder(stack, dropout, padded):
    terms = memory.encoder_activations(stack, FEED_FORWARD, mask=4 if dropout else 0)
    assert measured(stack, "eager", dropout, padded) == sum(terms.values()) + LOSS


def test_one_token_needs_no_copies_of_queries_and_keys_either():
    terms = memory.encoder_activations(STACKS[2], FEED_FORWARD)
    assert measured(STACKS[2], "eager") == sum(terms.values()) + LOSS


@pytest.mark.parametrize("stack", STACKS[:2])
def test_every_byte_of_an_encoder_with_fused_attention(stack):
    terms = memory.fused_encoder_activations(stack, FEED_FORWARD)
    assert measured(stack, "sdpa") == sum(terms.values()) + LOSS
    masks = stack.layers * stack.sequence**2 * stack.batch * 4
    assert measured(stack, "sdpa", padded=True) == sum(terms.values()) + masks + LOSS


class Block(nn.Module):
    """A layer whose norms stand before attention and feed-forward net; attention written out."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        seen = self.norms[0](x)
        q, k, v = (
            layer(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in self.projections[:3]
        )
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        x = x + self.projections[3](mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


def blocks_measured(stack, run):
    blocks = nn.ModuleList(Block(stack.width, stack.heads) for _ in range(stack.layers)).float()
    x = torch.ones(stack.batch, stack.sequence, stack.width, dtype=torch.float32)

    def loss():
        hidden = x
        for block in blocks:
            hidden = run(block, hidden)
        return hidden.square().mean()

    return training_step_peak(blocks, loss, torch.optim.SGD(blocks.parameters()))


def run_again(block, x):
    return checkpoint(block, x, use_reentrant=False)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_papers_layer_in_float32_without_dropout(layers):
    """32 of 34 and 4 of 5 terms, twice as wide; the output stands in for the first input."""
    _, s, b, h, a = stack = Stack(layers, 6, 2, 8, 2)
    masks = sum(size for name, size in memory.TOKEN_TERMS.items() if "mask" in name)
    tokens = 2 * (sum(memory.TOKEN_TERMS.values()) - masks) * s * b * h
    pairs = 2 * memory.PAIR_TERMS["softmax"] * a * s * s * b
    statistics = 2 * 2 * 4 * s * b
    found = blocks_measured(stack, nn.Module.__call__)
    assert found.activations == layers * (tokens + pairs + statistics) + LOSS


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_checkpoints_keep_the_inputs_of_the_layers(layers):
    stack = Stack(layers, 6, 2, 8, 2)
    found = blocks_measured(stack, run_again)
    assert found.activations == layers * 4 * 6 * 2 * 8 + LOSS


def test_checkpoints_lower_the_peak():
    stack = Stack(5, 16, 4, 8, 2)
    plain, again = (blocks_measured(stack, run) for run in (nn.Module.__call__, run_again))
    assert again[:3] == plain[:3]
    assert again.peak < plain.peak / 2


GOOD = STACKS[0]
BAD = [
    (lambda f=f, name=name: f(GOOD._replace(**{name: 0})), f"stack.{name}: ")
    for name in Stack._fields
    for f in (
        memory.activations,
        memory.selective_activations,
        memory.full_activations,
        lambda stack: memory.encoder_activations(stack, 4),
        lambda stack: memory.fused_encoder_activations(stack, 4),
    )
]
BAD += [
    (lambda: memory.activations(GOOD._replace(batch=1.5)), "stack.batch: "),
    (lambda: memory.encoder_activations(GOOD, 0), "feed_forward: "),
    (lambda: memory.encoder_activations(GOOD, 4, size=0), "size: "),
    (lambda: memory.encoder_activations(GOOD, 4, mask=-1), "mask: "),
    (lambda: memory.fused_encoder_activations(GOOD, 0), "feed_forward: "),
    (lambda: memory.fused_encoder_activations(GOOD, 4, size=0), "size: "),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
