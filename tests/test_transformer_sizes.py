"""Counts of parameters: the published sizes, and every term against the library's own models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from gradbook import transformer_sizes
from gradbook.transformer_sizes import QWEN_7B, QWEN_72B, Shape, parameters, terms

LLAMA = Shape(11, 12, 3, 6, 2, 7)
QWEN = LLAMA._replace(query_bias=1, key_bias=1, value_bias=1)
# The names of the parameters that each term counts.
PARTS = {
    "embedding": "embed_tokens",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "norms": "_layernorm",
    "final norm": "model.norm",
    "output": "lm_head",
}


def sizes(shape):
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "intermediate_size": shape.feed_forward,
        "tie_word_embeddings": not shape.output,
        "pad_token_id": None,
    }


def built(shape):
    """The library's model on the meta device: sizes without memory."""
    kinds = {0: (LlamaConfig, LlamaForCausalLM), 1: (Qwen2Config, Qwen2ForCausalLM)}
    config, model = kinds[shape.query_bias]
    with torch.device("meta"):
        return model(config(**sizes(shape)))


def counted(model):
    """Parameters by term; a tied matrix has one name, that of the embedding."""
    named = {name: p.numel() for name, p in model.named_parameters()}
    found = {term: sum(n for k, n in named.items() if part in k) for term, part in PARTS.items()}
    assert sum(found.values()) == sum(named.values())
    return found


def test_published_sizes():
    assert parameters(QWEN_7B) == 7_721_324_544
    assert parameters(QWEN_72B) == 72_287_920_128


@pytest.mark.parametrize("shape", [QWEN_7B, QWEN_72B])
def test_the_large_models_term_by_term(shape):
    assert counted(built(shape)) == terms(shape)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("shape", [LLAMA, QWEN])
def test_a_model_in_memory(shape, output):
    shape = shape._replace(output=output)
    model = type(built(shape))(built(shape).config)
    assert counted(model) == terms(shape)
    assert parameters(shape) == sum(p.numel() for p in model.parameters())


@settings(max_examples=25, deadline=None)
@given(
    heads=st.tuples(*[st.integers(1, 3)] * 2),
    even=st.integers(1, 3),
    rest=st.tuples(*[st.integers(1, 9)] * 3),
    flags=st.tuples(*[st.integers(0, 1)] * 2),
)
def test_any_shape_term_by_term(heads, even, rest, flags):
    """A head of the library must have an even width: its positions turn pairs of numbers."""
    groups, each = heads
    vocabulary, layers, feed_forward = rest
    output, bias = flags
    shape = Shape(
        vocabulary, groups * each * 2 * even, layers, groups * each, groups, feed_forward, output
    )
    shape = shape._replace(query_bias=bias, key_bias=bias, value_bias=bias)
    assert counted(built(shape)) == terms(shape)


@pytest.mark.parametrize("name", ["query_bias", "key_bias", "value_bias"])
def test_a_bias_adds_one_number_for_each_output(name):
    term = name[0]
    more = terms(LLAMA._replace(**{name: 1}))
    width = LLAMA.width if term == "q" else LLAMA.width * LLAMA.key_value_heads // LLAMA.heads
    assert more.pop(term) - terms(LLAMA)[term] == LLAMA.layers * width
    assert all(terms(LLAMA)[other] == count for other, count in more.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [({name: 0}, f"shape.{name}: ") for name in Shape._fields[:6]]
    + [({name: 2.0}, f"shape.{name}: ") for name in Shape._fields[:6]]
    + [({name: 2}, f"shape.{name}: must be 0 or 1") for name in Shape._fields[6:]]
    + [
        ({"width": 14}, "shape.heads: must divide"),
        ({"key_value_heads": 4}, "shape.key_value_heads: must divide"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        terms(LLAMA._replace(**change))


def test_sizes_are_positive_integers():
    transformer_sizes.require_sizes(a=1, b=7)
    for bad in (0, -1, 1.0, True, None):
        with pytest.raises(ValueError, match="^b: must be a positive integer"):
            transformer_sizes.require_sizes(a=1, b=bad)
