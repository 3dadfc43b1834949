"""A prefix of real words: its keys and values layer by layer, and what a text sees of it."""

import copy

import pytest
import torch

from gradbook.peft import prefix, prefix_starts
from gradbook.peft.selection import named

WIDTH, LAYERS = 8, 2


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def test_keys_and_values_are_those_of_every_layer(tiny_bert, ids):
    text = {"input_ids": ids[:1]}
    found = prefix_starts.word_prefix(tiny_bert, text)
    assert found.shape == (LAYERS, 2, 5, WIDTH)
    assert not found.requires_grad
    states = tiny_bert(**text, output_hidden_states=True).hidden_states
    with torch.no_grad():
        for row, layer, hidden in zip(found, tiny_bert.encoder.layer, states[:-1], strict=True):
            attention = layer.attention.self
            close(row, torch.cat([attention.key(hidden), attention.value(hidden)]))
    assert len({part.sum().item() for part in found.flatten(0, 1)}) == 2 * LAYERS


def test_a_text_behind_itself_is_read_as_alone(tiny_bert, ids):
    """Every key is there twice, so that all the weights are halved, and their sums are as before."""
    text = ids[:1]
    alone = tiny_bert(text).last_hidden_state
    start = prefix_starts.word_prefix(tiny_bert, {"input_ids": text})
    done = prefix.put(tiny_bert, start)
    close(tiny_bert(text).last_hidden_state, alone)
    assert done.report.trainable == prefix.prefix_parameters(LAYERS, 5, WIDTH)
    # Other words are seen.
    done.undo()
    prefix.put(tiny_bert, prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[1:2]}))
    assert (tiny_bert(text).last_hidden_state - alone).abs().max() > 1e-5


def test_words_seen_in_the_first_layer_alone(tiny_bert, ids):
    """By hand: the text's queries, and the keys and values of both."""
    first = tiny_bert.encoder.layer[0].attention.self
    where = named(r"encoder\.layer\.0\.attention\.self")
    start = prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[1:2]}, where)
    assert start.shape == (1, 2, 5, WIDTH)
    words, text = (tiny_bert.embeddings(input_ids=ids[i : i + 1]) for i in (1, 0))
    both = torch.cat([words, text], 1)
    q, k, v = (
        part.unflatten(-1, (2, -1)).transpose(1, 2)
        for part in (first.query(text), first.key(both), first.value(both))
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    prefix.put(tiny_bert, start, where)
    close(tiny_bert.encoder.layer[0].attention.self(text)[0], expected)


def test_the_model_is_left_as_it_was(tiny_bert, ids):
    before = {name: part.clone() for name, part in tiny_bert.state_dict().items()}
    prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[:1]})
    assert hooks(tiny_bert) == []
    assert all(torch.equal(part, before[name]) for name, part in tiny_bert.state_dict().items())
    assert all(part.requires_grad for part in tiny_bert.parameters())
    # Also when the model refuses the words: there are 17.
    with pytest.raises(IndexError):
        prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[:1] + 17})
    assert hooks(tiny_bert) == []


def test_several_texts_are_refused(tiny_bert, ids):
    with pytest.raises(ValueError, match="^inputs: must be one text"):
        prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[:2]})
    assert hooks(tiny_bert) == []


def test_places_that_are_none_are_refused(tiny_bert, ids):
    with pytest.raises(ValueError, match="^where: holds for no module of the model"):
        prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[:1]}, lambda name, module: False)
    with pytest.raises(ValueError, match="^where: "):
        prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[:1]}, named("pooler"))


def test_a_layer_that_is_not_called_is_refused(tiny_bert, ids):
    tiny_bert.spare = copy.deepcopy(tiny_bert.encoder.layer[0])
    with pytest.raises(ValueError, match="^where: holds for a layer that is not used"):
        prefix_starts.word_prefix(tiny_bert, {"input_ids": ids[:1]})
    assert hooks(tiny_bert) == []


def test_a_model_that_has_a_prefix_is_refused(tiny_bert, ids):
    text = {"input_ids": ids[:1]}
    prefix.put(tiny_bert, prefix_starts.word_prefix(tiny_bert, text))
    with pytest.raises(ValueError, match="^where: "):
        prefix_starts.word_prefix(tiny_bert, text)
