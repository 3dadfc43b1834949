"""Soft prompts: masks, labels and positions that move along, templates, ensembles, peft's outputs."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import prompts
from gradbook.peft.injection import count
from gradbook.peft.prompt_encoders import MLPPromptEncoder

WIDTH, P = 8, 3


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def soft(length=P, seed=0):
    return prompts.SoftPrompt(normal(length, WIDTH, seed=seed))


def ones(*shape):
    return torch.ones(shape, dtype=torch.int64)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def embed(model, ids):
    return model.get_input_embeddings()(ids)


def bert_outputs(model, embeddings, mask, position_ids=None):
    given = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": position_ids}
    return model(**given).last_hidden_state


def gpt2_logits(model, embeddings, mask, position_ids=None):
    given = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": position_ids}
    return model(**given).logits


def test_a_prompt_holds_its_own_copy_and_nothing_else():
    start = normal(P, WIDTH)
    prompt = prompts.SoftPrompt(start)
    start.zero_()
    assert torch.equal(prompt(), normal(P, WIDTH))
    assert count(prompt) == (P * WIDTH, P * WIDTH)
    assert prompts.prompt_parameters(P, WIDTH) == P * WIDTH
    assert prompts.prompt_parameters(100, 4096) == 409_600


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), st.booleans())
def test_the_prompt_stands_first_and_is_always_seen(rows, tokens, length, boolean):
    prompt, embeddings = soft(length), normal(rows, tokens, WIDTH, seed=1)
    mask = normal(rows, tokens, seed=2) > 0
    mask = mask if boolean else mask.long()
    longer, seen = prompts.prepended(prompt, embeddings, mask)
    assert longer.shape == (rows, length + tokens, WIDTH)
    assert seen.dtype == mask.dtype
    for row in range(rows):
        assert torch.equal(longer[row, :length], prompt.vectors)
        assert torch.equal(longer[row, length:], embeddings[row])
        assert seen[row, :length].all()
        assert torch.equal(seen[row, length:], mask[row])


def test_only_the_prompt_gets_a_gradient_and_it_is_the_sum_over_the_texts(tiny_bert, ids):
    tiny_bert.requires_grad_(False)
    prompt, embeddings = soft(), embed(tiny_bert, ids)
    slopes = []
    for rows in (slice(None), slice(0, 1), slice(1, 2), slice(2, 3)):
        batch = prompts.prepended(prompt, embeddings[rows], ones(*ids[rows].shape))
        loss = bert_outputs(tiny_bert, *batch)[..., 0].sum()
        slopes.append(torch.autograd.grad(loss, prompt.vectors)[0])
    assert slopes[0].abs().min() > 0
    close(slopes[0], sum(slopes[1:]))


def test_real_embeddings_as_a_prompt_are_real_tokens(tiny_bert, tiny_gpt2, ids):
    front, mask = torch.tensor([4, 9, 2]), ones(3, 5)
    whole = torch.cat([front.expand(3, -1), ids], 1)
    for model, run in ((tiny_bert, bert_outputs), (tiny_gpt2, gpt2_logits)):
        prompt = prompts.SoftPrompt(embed(model, front))
        ours = run(model, *prompts.prepended(prompt, embed(model, ids), mask))
        close(ours, model(input_ids=whole)[0])


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_gpt2"])
def test_outputs_are_those_of_peft(kind, request, ids):
    model = request.getfixturevalue(kind)
    task = {"tiny_bert": "FEATURE_EXTRACTION", "tiny_gpt2": "CAUSAL_LM"}[kind]
    run = {"tiny_bert": bert_outputs, "tiny_gpt2": gpt2_logits}[kind]
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=P)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).double().eval()
    prompt = soft()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(prompt.vectors)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    ours = run(model, *prompts.prepended(prompt, embed(model, ids), mask))
    expected = theirs(input_ids=ids, attention_mask=mask)[0]
    kept = torch.cat([ones(3, P), mask], 1).bool()
    assert expected.shape == ours.shape
    close(ours[kept], expected[kept])
    assert count(prompt)[0] == count(theirs)[0]


def test_a_batch_padded_at_the_right_equals_single_texts(tiny_bert, ids):
    prompt, lengths = soft(), [5, 3, 1]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    together = bert_outputs(tiny_bert, *prompts.prepended(prompt, embed(tiny_bert, ids), mask))
    for row, n in enumerate(lengths):
        alone = prompts.prepended(prompt, embed(tiny_bert, ids[row : row + 1, :n]), ones(1, n))
        close(together[row : row + 1, : P + n], bert_outputs(tiny_bert, *alone))


def test_padding_between_prompt_and_text_needs_positions_and_then_equals_single_texts(
    tiny_gpt2, ids
):
    prompt, lengths = soft(), [5, 3, 1]
    mask = (torch.arange(5) >= 5 - torch.tensor(lengths)[:, None]).long()
    longer, seen = prompts.prepended(prompt, embed(tiny_gpt2, ids), mask)
    places = prompts.positions(seen)
    assert places[1].tolist() == [0, 1, 2, 2, 2, 3, 4, 5]
    together = gpt2_logits(tiny_gpt2, longer, seen, places)
    for row, n in enumerate(lengths):
        text = embed(tiny_gpt2, ids[row : row + 1, 5 - n :])
        alone = gpt2_logits(tiny_gpt2, *prompts.prepended(prompt, text, ones(1, n)))
        close(together[row : row + 1, 8 - n :], alone[:, P:])


def test_positions_of_padding_in_front_are_not_negative():
    assert prompts.positions(torch.tensor([[False, False, True, True]])).tolist() == [[0, 0, 0, 1]]
    assert prompts.positions(ones(0, 4)).shape == (0, 4)


def test_labels_move_behind_the_prompt():
    labels = torch.tensor([[7, 8], [9, -100]])
    moved = prompts.shifted_labels(labels, 2)
    assert moved.tolist() == [[-100, -100, 7, 8], [-100, -100, 9, -100]]
    assert prompts.shifted_labels(labels, 1, ignore=-1)[0].tolist() == [-1, 7, 8]
    assert prompts.shifted_labels(labels[:0], 3).shape == (0, 5)


@pytest.mark.parametrize("length", [1, 3])
def test_the_loss_of_gpt2_is_that_of_logits_at_p_plus_t_minus_1(tiny_gpt2, ids, length):
    lengths, prompt = [5, 3, 1], soft(length)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    labels = prompts.shifted_labels(ids.where(mask == 1, -100), length)
    longer, seen = prompts.prepended(prompt, embed(tiny_gpt2, ids), mask)
    out = tiny_gpt2(inputs_embeds=longer, attention_mask=seen, labels=labels)
    terms = [
        -out.logits[b, length + t - 1].log_softmax(-1)[ids[b, t]]
        for b, n in enumerate(lengths)
        for t in range(n)
    ]
    expected = sum(terms) / sum(lengths)
    flat = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    close(torch.nn.functional.cross_entropy(*flat), expected)
    # The library turns logits to float32 before its loss.
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-6, atol=0)


def test_a_template_keeps_the_order_and_knows_the_places():
    table, vectors = normal(17, WIDTH, seed=1), normal(3, WIDTH)
    text, anchor = torch.tensor([[4, 5], [6, 7]]), torch.tensor([9])
    filled = prompts.template(table, [vectors[:1], text, anchor, vectors[1:]])
    assert [p.tolist() for p in filled.places] == [[0], [1, 2], [3], [4, 5]]
    for row in range(2):
        rows = [vectors[0], table[text[row, 0]], table[text[row, 1]], table[9], *vectors[1:]]
        assert torch.equal(filled.embeddings[row], torch.stack(rows))


def test_a_template_without_texts_has_one_row_and_one_of_no_texts_none():
    table, vectors = normal(17, WIDTH, seed=1), normal(2, WIDTH)
    assert prompts.template(table, [vectors, torch.tensor([3])]).embeddings.shape == (1, 3, WIDTH)
    none = torch.empty(0, 4, dtype=torch.int64)
    assert prompts.template(table, [vectors, none]).embeddings.shape == (0, 6, WIDTH)


def test_a_template_of_a_prompt_and_a_text_is_the_prompt_prepended(tiny_bert, ids):
    prompt, table = soft(), tiny_bert.get_input_embeddings().weight
    mask = (torch.arange(5) < torch.tensor([5, 3, 1])[:, None]).long()
    longer, seen = prompts.prepended(prompt, embed(tiny_bert, ids), mask)
    filled = prompts.template(table, [prompt(), ids])
    assert torch.equal(filled.embeddings, longer)
    assert torch.equal(prompts.template_mask(filled, 1, mask), seen)


def test_padding_inside_a_template_equals_single_texts(tiny_bert, ids):
    table, prompt, anchor = tiny_bert.get_input_embeddings().weight, soft(), torch.tensor([9, 2])
    lengths = [5, 3, 1]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()

    def fill(text):
        return prompts.template(table, [prompt()[:1], text, anchor, prompt()[1:]])

    filled = fill(ids)
    whole = prompts.template_mask(filled, 1, mask)
    places = prompts.positions(whole)
    together = bert_outputs(tiny_bert, filled.embeddings, whole, places)
    for row, n in enumerate(lengths):
        alone = fill(ids[row : row + 1, :n]).embeddings
        expected = bert_outputs(tiny_bert, alone, ones(1, n + 5))
        close(together[row][whole[row] == 1], expected[0])


def test_the_callers_default_device_does_not_matter():
    vectors, text, mask = normal(2, WIDTH), torch.tensor([[4, 5]]), ones(1, 2)
    with torch.device("meta"):
        filled = prompts.template(TABLE, [vectors, text])
        batch = prompts.prepended(prompts.SoftPrompt(vectors), TABLE[text], mask)
        moved = prompts.shifted_labels(text, 2)
    assert filled.embeddings.shape == batch[0].shape == (1, 4, WIDTH)
    assert {x.device.type for x in (*filled.places, *batch, moved)} == {"cpu"}


def test_gradients_reach_the_soft_vectors_of_a_template():
    vectors = normal(2, WIDTH).requires_grad_()
    table = normal(17, WIDTH, seed=1)
    text = torch.tensor([[1], [2], [3]])
    filled = prompts.template(table, [vectors[1:], text, vectors[:1]])
    filled.embeddings[:, 0].sum().backward()
    assert vectors.grad.tolist() == [[0.0] * WIDTH, [3.0] * WIDTH]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_an_ensemble_is_the_mean_of_single_passes(tiny_bert, ids, n):
    head, calls = normal(WIDTH, 3, seed=9), []

    def predict(embeddings, mask):
        calls.append(len(embeddings))
        return bert_outputs(tiny_bert, embeddings, mask)[:, 0] @ (5 * head)

    several = [soft(seed=i) for i in range(n)]
    mask = (torch.arange(5) < torch.tensor([5, 3, 1])[:, None]).long()
    embeddings = embed(tiny_bert, ids)
    ours = prompts.ensembled(several, embeddings, mask, predict)
    assert calls == [3 * n]
    singles = [predict(*prompts.prepended(p, embeddings, mask)).softmax(-1) for p in several]
    close(ours, sum(singles) / n)
    close(ours.sum(-1), torch.ones(3, dtype=torch.float64))


def test_an_ensemble_of_no_texts_is_empty():
    several, none = [soft(), soft(seed=1)], normal(0, 4, WIDTH)
    ours = prompts.ensembled(several, none, ones(0, 4), lambda x, _: x[:, 0, :2])
    assert ours.shape == (0, 2)


def test_a_prompt_that_a_network_produces_can_be_prepended():
    generator = torch.Generator().manual_seed(0)
    encoder = MLPPromptEncoder(P, WIDTH, 4, generator, torch.float64)
    batch = normal(2, 5, WIDTH, seed=1), ones(2, 5)
    ours, _ = prompts.prepended(encoder, *batch)
    later, _ = prompts.prepended(prompts.SoftPrompt(encoder.folded()), *batch)
    assert torch.equal(ours, later)
    ours[0, 0].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    "vectors",
    [normal(WIDTH), normal(0, WIDTH), normal(2, 0), ones(2, 3), normal(2, 3) / 0],
)
def test_bad_vectors_are_refused(vectors):
    with pytest.raises(ValueError, match=r"^vectors: "):
        prompts.SoftPrompt(vectors)


@pytest.mark.parametrize(
    ("embeddings", "mask", "message"),
    [
        (normal(5, WIDTH), ones(5, 1), "embeddings"),
        (normal(2, 5, WIDTH + 1), ones(2, 5), "embeddings"),
        (normal(2, 5, 1), ones(2, 5), "embeddings"),
        (normal(2, 5, WIDTH).float(), ones(2, 5), "embeddings"),
        (normal(2, 5, WIDTH), ones(2, 4), "mask"),
        (normal(2, 5, WIDTH), ones(1, 5), "mask"),
        (normal(2, 5, WIDTH), ones(2, 5, 1), "mask"),
        (normal(2, 5, WIDTH), ones(2, 5) * 2, "mask"),
        (normal(2, 5, WIDTH), torch.full((2, 5), torch.nan), "mask"),
    ],
)
def test_batches_that_do_not_fit_are_refused(embeddings, mask, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        prompts.prepended(soft(), embeddings, mask)


TABLE = normal(17, WIDTH, seed=1)


@pytest.mark.parametrize(
    ("table", "pieces", "message"),
    [
        (TABLE[0], [ones(2)], "table"),
        (ones(3, 3), [ones(2)], "table"),
        (TABLE, [], "pieces"),
        (TABLE, [normal(WIDTH)], "pieces"),
        (TABLE, [normal(2, WIDTH - 1)], "pieces"),
        (TABLE, [normal(2, WIDTH).float()], "pieces"),
        (TABLE, [torch.tensor([17])], "pieces"),
        (TABLE, [torch.tensor([-1])], "pieces"),
        (TABLE, [ones(2).int()], "pieces"),
        (TABLE, [ones(1, 2, 3)], "pieces"),
        (TABLE, [torch.tensor(3)], "pieces"),
        (TABLE, [ones(2, 3), ones(3, 3)], "pieces"),
        (TABLE, [ones(1, 3), ones(3, 3)], "pieces"),
    ],
)
def test_bad_templates_are_refused(table, pieces, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        prompts.template(table, pieces)


@pytest.mark.parametrize(
    ("piece", "mask", "message"),
    [
        (2, ones(2, 3), "piece"),
        (-1, ones(2, 3), "piece"),
        (1, ones(2, 2), "mask"),
        (1, ones(1, 3), "mask"),
        (1, -ones(2, 3), "mask"),
        (1, ones(3), "mask"),
    ],
)
def test_bad_masks_of_templates_are_refused(piece, mask, message):
    filled = prompts.template(TABLE, [normal(2, WIDTH), ones(2, 3)])
    with pytest.raises(ValueError, match=f"^{message}: "):
        prompts.template_mask(filled, piece, mask)


def test_other_bad_arguments_are_refused():
    batch = normal(2, 5, WIDTH), ones(2, 5), lambda x, _: x[:, 0]
    for call, message in [
        (lambda: prompts.shifted_labels(ones(2, 3), 0), "length"),
        (lambda: prompts.shifted_labels(ones(2), 1), "labels"),
        (lambda: prompts.shifted_labels(ones(2, 3).int(), 1), "labels"),
        (lambda: prompts.positions(ones(3)), "mask"),
        (lambda: prompts.positions(ones(3, 2) * 3), "mask"),
        (lambda: prompts.prompt_parameters(0, 3), "length"),
        (lambda: prompts.prompt_parameters(3, 0), "width"),
        (lambda: prompts.ensembled([], *batch), "prompts"),
        (lambda: prompts.ensembled([soft(2), soft(3)], *batch), "prompts"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}: "):
            call()
