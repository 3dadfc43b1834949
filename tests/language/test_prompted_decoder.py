"""Losses and completions of a tiny Llama against single rows, one token at a time, without a cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from gradbook.language.prompted_decoder import PromptedDecoder, require_right
from gradbook.peft.injection import inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.prompts import SoftPrompt

WORDS, WIDTH, P = 17, 8, 3


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def llama():
    """A tiny decoder in float64; its weights are large, so that its answers differ by place."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        decoder = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for i, (name, part) in enumerate(decoder.named_parameters()):
            part.copy_(normal(*part.shape, seed=i) * 0.7 + float("norm" in name))
    return decoder


DECODER = llama()
PROMPTS = [None, SoftPrompt(normal(1, WIDTH, seed=50)), SoftPrompt(normal(P, WIDTH, seed=51))]


def rows(lengths, seed=0):
    """Random ids, as wide as the longest row, and a mask padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids, mask


def left(ids, mask):
    """The same rows, padded on the left."""
    by = (mask == 0).sum(1).tolist()
    return (
        torch.stack([row.roll(n) for row, n in zip(part, by, strict=True)]) for part in (ids, mask)
    )


def logits(prompt, ids):
    """What follows each place of one unpadded row [T] behind a prompt: [p + T, V]."""
    table = DECODER.get_input_embeddings().weight
    front = table[:0] if prompt is None else prompt()
    return DECODER(inputs_embeds=torch.cat([front, table[ids]])[None], use_cache=False).logits[0]


def length(prompt):
    return 0 if prompt is None else len(prompt())


def one_by_one(prompt, ids, steps, end):
    """Greedy, each time from the whole text anew."""
    text = ids.tolist()
    for _ in range(steps):
        over = end in text[len(ids) :]
        following = logits(prompt, torch.tensor(text, dtype=torch.int64))[-1].argmax().item()
        text.append(end if over else following)
    return text[len(ids) :]


def close(ours, theirs):
    # Whatever the type, transformers computes Llama's norms in float32.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_losses_of_a_padded_batch_are_those_of_single_rows(prompt):
    lengths = [6, 3, 1, 4]
    ids, mask = rows(lengths)
    labels = ids.where((mask == 1) & (normal(4, 6, seed=3) > -0.5), -100)
    labels[:, 0] = ids[:, 0]
    ids = ids.where(mask == 1, 9)
    p, expected = length(prompt), []
    for row, n in enumerate(lengths):
        after = logits(prompt, ids[row, :n]).log_softmax(-1)
        for t in range(n):
            if labels[row, t] != -100 and p + t > 0:
                expected.append(-after[p + t - 1, labels[row, t]])
    assert 0 < len(expected) < sum(lengths)
    expected = torch.stack(expected)
    model = PromptedDecoder(DECODER, prompt)
    close(model.losses(ids, mask, labels), expected)
    close(model.loss(ids, mask.bool(), labels), expected.mean())


def test_labels_may_differ_from_what_is_read():
    ids, mask = rows([5])
    labels = torch.full_like(ids, -100)
    labels[0, 2] = (ids[0, 2] + 1) % WORDS
    found = PromptedDecoder(DECODER, PROMPTS[2]).loss(ids, mask, labels)
    after = logits(PROMPTS[2], ids[0]).log_softmax(-1)
    close(found, -after[P + 2 - 1, labels[0, 2]])


def test_the_head_sees_no_more_places_than_are_labelled():
    ids, mask = rows([6, 4])
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[1, 3] = 5, 6
    seen = []
    head = DECODER.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    try:
        PromptedDecoder(DECODER, PROMPTS[2]).loss(ids, mask, labels)
    finally:
        handle.remove()
    assert seen == [(2, WIDTH)]


def test_the_gradient_of_a_prompt_is_that_of_single_rows():
    lengths, prompt = [4, 2], PROMPTS[2]
    ids, mask = rows(lengths)
    loss = PromptedDecoder(DECODER, prompt).loss(ids, mask, ids.where(mask == 1, -100))
    found = torch.autograd.grad(loss, prompt.vectors)[0]
    expected = sum(
        -logits(prompt, row[:n])[P - 1 : -1].log_softmax(-1)[range(n), row[:n]].sum() / 6
        for row, n in zip(ids, lengths, strict=True)
    )
    close(found, torch.autograd.grad(expected, prompt.vectors)[0])
    assert found.abs().min() > 1e-4


def test_a_prompt_is_a_part_of_the_model_and_the_decoder_is_not_copied():
    model = PromptedDecoder(DECODER, PROMPTS[2])
    assert model.decoder is DECODER
    names = {name for name, _ in model.named_parameters()}
    assert "prompt.vectors" in names
    assert not any(
        "prompt" in name for name, _ in PromptedDecoder(DECODER, None).named_parameters()
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@settings(max_examples=4)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 10**6))
def test_completions_are_those_of_single_rows_without_a_cache(prompt, lengths, seed):
    ids, mask = rows(lengths, seed)
    expected = [one_by_one(prompt, ids[i, :n], 5, end=4) for i, n in enumerate(lengths)]
    ids, mask = left(ids.where(mask == 1, 9), mask)
    found = PromptedDecoder(DECODER, prompt).complete(ids, mask, 5, end=4)
    assert found.tolist() == expected


def test_after_the_end_come_ends_also_where_all_rows_are_over():
    ids, mask = rows([5, 5, 5, 5])
    free = [one_by_one(None, row, 4, end=-1) for row in ids]
    assert len({row[0] for row in free}) > 1
    end = free[0][1]
    found = PromptedDecoder(DECODER, None).complete(ids[:1], mask[:1], 9, end)
    assert found.tolist() == [one_by_one(None, ids[0], 9, end)]
    assert found[0, 1:].tolist() == [end] * 8
    together = PromptedDecoder(DECODER, None).complete(ids, mask, 4, end)
    assert together.tolist() == [one_by_one(None, row, 4, end) for row in ids]
    assert together.shape == (4, 4)


def test_completing_leaves_the_generators_and_the_mode_alone():
    ids, mask = rows([3])
    before = torch.get_rng_state()
    model = PromptedDecoder(DECODER, PROMPTS[1])
    modes = [part.training for part in model.modules()]
    found = model.complete(ids, mask, 2, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.modules()] == modes
    assert not found.requires_grad


def test_a_prompt_alone_can_be_gone_on_from():
    none = torch.empty(2, 0, dtype=torch.int64)
    found = PromptedDecoder(DECODER, PROMPTS[2]).complete(none, none, 3, end=4)
    assert found.tolist() == [one_by_one(PROMPTS[2], none[0], 3, end=4)] * 2


def test_empty_batches_have_empty_answers():
    none = torch.empty(0, 4, dtype=torch.int64)
    model = PromptedDecoder(DECODER, PROMPTS[2])
    assert model.complete(none, none, 3, 0).shape == (0, 3)
    assert model.losses(none, none, none).shape == (0,)


def test_lora_inside_the_decoder_trains_alone():
    decoder = llama()
    generator = torch.Generator().manual_seed(0)
    inject(
        decoder,
        lambda name, _: name.endswith(("q_proj", "v_proj")),
        lambda layer: LoRALinear(layer, 2, 4.0, generator),
    )
    model, (ids, mask) = PromptedDecoder(decoder, None), rows([5, 4])
    model.loss(ids, mask, ids.where(mask == 1, -100)).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name[-2:] in (".A", ".B")}
    assert len(reached) == 8


def test_decoders_of_other_kinds_are_refused():
    class Capped(LlamaForCausalLM):
        """Computes its logits in its own way, as a child may."""

    # Granite has Llama's parts, and divides its logits by a number.
    config = GraniteConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with torch.device("meta"):
        others = GraniteForCausalLM(config), Capped(DECODER.config), DECODER.model
    for other in others:
        name = type(other).__name__
        with pytest.raises(ValueError, match=f"^decoder: must be a LlamaForCausalLM, got {name}"):
            PromptedDecoder(other, None)


def test_what_does_not_fit_is_named():
    ids, mask = rows([4, 2])
    labels = ids.where(mask == 1, -100)
    unpadded = torch.ones_like(mask)
    bare, prompted = PromptedDecoder(DECODER, None), PromptedDecoder(DECODER, PROMPTS[2])
    alone = labels.clone()
    alone[:, 1:] = -100
    padded = labels.clone()
    padded[1, 3] = 0
    none = ids[:, :0]
    shifted, moved = left(ids, mask)
    single = PromptedDecoder(DECODER, SoftPrompt(normal(P, WIDTH).float()))
    wide = PromptedDecoder(DECODER, SoftPrompt(normal(P, WIDTH + 1)))
    for call, message in [
        (lambda: bare.loss(ids[0], mask[0], labels[0]), "ids: must be"),
        (lambda: bare.loss(ids.int(), mask, labels), "ids: ids must be int64"),
        (lambda: bare.loss(ids + WORDS, mask, labels), "ids: ids must be from"),
        (lambda: bare.loss(ids, mask[:1], labels), "mask: must be"),
        (lambda: bare.loss(ids, mask * 2, labels), "mask: must hold"),
        (lambda: bare.loss(ids, mask * math.nan, labels), "mask: must hold"),
        (lambda: prompted.loss(shifted, moved, ids), "mask: every row must be ones"),
        (lambda: bare.loss(ids, mask, labels[:, 1:]), "labels: must be"),
        (lambda: bare.loss(ids, mask, labels.double()), "labels: ids"),
        (lambda: bare.loss(ids, mask, labels.clamp(max=-1)), "labels: ids"),
        (lambda: bare.loss(ids, unpadded, labels + WORDS), "labels: ids"),
        (lambda: bare.loss(ids, mask, padded), "labels: must not stand"),
        (lambda: bare.loss(ids, mask, alone), "labels: must be there"),
        (lambda: single.loss(ids, mask, labels), "embeddings: "),
        (lambda: wide.loss(ids, mask, labels), "embeddings: "),
        (lambda: bare.complete(ids, mask, 3, 0), "mask: every row must be zeros"),
        (lambda: prompted.complete(ids, mask * 0, 3, 0), "mask: every row must be zeros"),
        (lambda: bare.complete(none, none, 3, 0), "ids: without a prompt"),
        (lambda: bare.complete(ids, unpadded, 0, 0), "steps: "),
        (lambda: bare.complete(ids, unpadded, 1, WORDS), "end: "),
        (lambda: bare.complete(ids, unpadded, 1, -1), "end: "),
        (lambda: require_right(moved), "mask: "),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    assert prompted.loss(ids, mask, alone) > 0
