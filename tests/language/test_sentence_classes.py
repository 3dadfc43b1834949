"""Texts by the nearest class: cosines by hand, and what a prompt among the inputs does, row by row."""

import pytest
import torch
from torch import nn

from gradbook.language import encoder, sentence_classes
from gradbook.language.encoder import Tokens
from gradbook.language.sentence_classes import PromptedReader, Reader, SentenceClassifier
from gradbook.peft import prompts
from gradbook.peft.injection import count
from gradbook.peft.prompts import SoftPrompt

WIDTH, P = 8, 3


class Given(nn.Module):
    """Reads every text as the vector that it was given."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = vectors

    def forward(self, ids, mask):
        return self.vectors


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def real(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture
def network(tiny):
    return tiny().encoder


@pytest.fixture
def short(texts):
    """Texts of 1 to 5 pieces, so that a prompt has room among the 12 places."""
    found = texts(12, seed=3)
    mask = found.mask[:, :5]
    assert len(set(mask.sum(1).tolist())) > 2
    return Tokens(found.ids[:, :5] * mask, mask)


def by_hand(network, ids, vectors, front, anchors=()):
    """Reads one text without padding: [n] ids to [width]."""
    table = network.embeddings.word_embeddings.weight
    middle = table[torch.cat([ids, torch.tensor(anchors, dtype=torch.int64)])]
    embeddings = torch.cat([vectors[:front], middle, vectors[front:]])[None]
    places = torch.arange(embeddings.shape[1])[None]
    states = network(
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(places),
        position_ids=places,
    ).last_hidden_state[0]
    return states[front : front + len(middle)].mean(0)


# Classes


def test_logits_are_20_cosines():
    reader = Given(real([3, 4], [-0.5, 0], [0, 1e-3]))
    model = SentenceClassifier(reader, real([2, 0], [0, 5], [1, -1]))
    root = 20 * 0.5**0.5
    close(model(None, None), real([12, 16, -0.2 * root], [-20, 0, -root], [0, 20, -root]))


def test_logits_are_those_of_torchs_cosine(network, short):
    classes = normal(3, WIDTH, seed=1)
    found = SentenceClassifier(Reader(network), classes)(*short)
    vectors = encoder.pooled(network, *short)
    expected = torch.cosine_similarity(vectors[:, None], classes, dim=-1)
    close(found, 20 * expected)


def test_the_classes_are_kept_and_not_trained():
    given = normal(2, WIDTH).requires_grad_()
    model = SentenceClassifier(Given(normal(4, WIDTH, seed=1)), given)
    kept = model.classes.clone()
    close(kept.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    with torch.no_grad():
        given.zero_()
    assert torch.equal(model.classes, kept)
    assert count(model) == (0, 0)
    assert list(model.state_dict()) == ["classes"]
    assert not model(None, None).requires_grad


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (real(1, 0), r"must be \[C, width\], C from 2, got \[2\]"),
        (real([1, 0]), r"must be \[C, width\], C from 2, got \[1, 2\]"),
        (real([1, 0], [0, float("nan")]), "must be finite"),
        (real([1, 0], [0, float("inf")]), "must be finite"),
        (real([1, 0], [0, 0]), "must not be zero"),
    ],
)
def test_classes_that_are_none_are_refused(classes, message):
    with pytest.raises(ValueError, match=f"^classes: {message}"):
        SentenceClassifier(Given(classes), classes)


def test_vectors_of_classes_are_those_of_their_sentences_alone(network, short, monkeypatch):
    asked = []

    def encode(sentences):
        asked.append(sentences)
        return short

    monkeypatch.setattr(encoder, "encode", encode)
    sentences = [f"class {i}" for i in range(len(short.ids))]
    found = sentence_classes.class_vectors(network, sentences)
    assert asked == [sentences]
    assert not found.requires_grad
    for row, ids, mask in zip(found, *short, strict=True):
        states = network(input_ids=ids[: mask.sum()][None]).last_hidden_state[0]
        close(row, states.mean(0).detach())


@pytest.mark.parametrize("sentences", [[], ["one"]])
def test_vectors_of_one_class_are_refused(network, sentences):
    with pytest.raises(ValueError, match=f"^sentences: must be at least two, got {len(sentences)}"):
        sentence_classes.class_vectors(network, sentences)


# Readers


def test_a_reader_reads_texts_as_they_are(network, short):
    assert torch.equal(Reader(network)(*short), encoder.pooled(network, *short))


@pytest.mark.parametrize("anchors", [(), (4,), (4, 7)])
@pytest.mark.parametrize("front", [None, 0, 1, 3])
def test_every_text_is_read_as_if_alone_and_without_padding(network, short, front, anchors):
    vectors = normal(P, WIDTH)
    found = PromptedReader(network, SoftPrompt(vectors), front, anchors)(*short)
    assert found.shape == (12, WIDTH)
    front = P if front is None else front
    for row, ids, mask in zip(found, *short, strict=True):
        close(row, by_hand(network, ids[: mask.sum()], vectors, front, anchors))


def test_no_texts_give_no_vectors(network, short):
    none = Tokens(short.ids[:0], short.mask[:0])
    for reader in (Reader(network), PromptedReader(network, SoftPrompt(normal(P, WIDTH)))):
        found = SentenceClassifier(reader, normal(2, WIDTH))(*none)
        assert (found.shape, found.dtype) == ((0, 2), torch.float64)


def test_what_stands_in_the_padding_does_not_matter(network, short):
    reader = PromptedReader(network, SoftPrompt(normal(P, WIDTH)), 1, [4])
    rubbish = short.ids + (1 - short.mask) * 7
    close(reader(rubbish, short.mask), reader(*short))


def test_vectors_of_real_words_are_these_words_and_only_the_text_is_averaged(network, short):
    words = torch.tensor([4, 9, 2])
    table = network.get_input_embeddings().weight
    found = PromptedReader(network, SoftPrompt(table[words]))(*short)
    ids = torch.cat([words.expand(12, -1), short.ids], 1)
    mask = torch.cat([torch.ones(12, P, dtype=torch.int64), short.mask], 1)
    states = network(input_ids=ids, attention_mask=mask).last_hidden_state[:, P:]
    weights = short.mask[..., None]
    close(found, (states * weights).sum(1) / weights.sum(1))
    # Not what the reader would say of the longer text.
    assert (found - encoder.pooled(network, ids, mask)).abs().max() > 0.01


def test_anchors_alone_are_more_text(network, short):
    whole = short.mask.sum(1) == 5
    tokens = Tokens(short.ids[whole], short.mask[whole])
    assert len(tokens.ids) > 1
    none = SoftPrompt(normal(1, WIDTH))
    none.forward = lambda: none.vectors[:0]
    found = PromptedReader(network, none, None, [4, 7])(*tokens)
    ids = torch.cat([tokens.ids, torch.tensor([4, 7]).expand(len(tokens.ids), -1)], 1)
    close(found, encoder.pooled(network, ids, torch.ones_like(ids)))


def test_a_prompt_in_front_is_the_one_that_is_prepended(network, short):
    prompt = SoftPrompt(normal(P, WIDTH))
    embeddings = network.get_input_embeddings()(short.ids)
    longer, seen = prompts.prepended(prompt, embeddings, short.mask)
    states = network(
        inputs_embeds=longer, attention_mask=seen, position_ids=prompts.positions(seen)
    ).last_hidden_state[:, P:]
    weights = short.mask[..., None]
    expected = (states * weights).sum(1) / weights.sum(1)
    close(PromptedReader(network, prompt)(*short), expected)


@pytest.mark.parametrize("front", [None, 1])
def test_a_frozen_encoder_hands_all_of_the_gradient_to_the_prompt(network, short, front):
    network.requires_grad_(False)
    prompt = SoftPrompt(normal(P, WIDTH))
    model = SentenceClassifier(PromptedReader(network, prompt, front), normal(2, WIDTH, seed=1))
    assert [p for p in model.parameters() if p.requires_grad] == [prompt.vectors]

    def loss():
        return model(*short).log_softmax(1)[:, 0].mean()

    loss().backward()
    assert all(p.grad is None for p in network.parameters())
    # Central differences in a random direction: of the second order in the step.
    way, step, found = normal(P, WIDTH, seed=2), 1e-5, []
    with torch.no_grad():
        for sign in (1, -2):
            prompt.vectors += sign * step * way
            found.append(loss().item())
    slope = (found[0] - found[1]) / (2 * step)
    assert (prompt.vectors.grad * way).sum().item() == pytest.approx(slope, rel=1e-6)
    assert prompt.vectors.grad.abs().min() > 0


def test_a_prompt_is_asked_anew_in_every_pass(network, short):
    prompt = SoftPrompt(normal(P, WIDTH))
    reader = PromptedReader(network, prompt)
    first = reader(*short)
    with torch.no_grad():
        prompt.vectors.copy_(normal(P, WIDTH, seed=5))
    assert (reader(*short) - first).abs().max() > 1e-3
    assert count(reader) == (count(network)[0] + P * WIDTH, count(network)[1] + P * WIDTH)


def test_places_that_are_none_are_refused(network):
    with pytest.raises(ValueError, match="^front: must not be negative, got -1"):
        PromptedReader(network, SoftPrompt(normal(P, WIDTH)), -1)


@pytest.mark.parametrize("rows", [12, 1])
def test_more_vectors_in_front_than_there_are_are_refused(network, short, rows):
    reader = PromptedReader(network, SoftPrompt(normal(P, WIDTH)), P + 1)
    with pytest.raises(ValueError, match=f"^front: must be at most {P}, got {P + 1}"):
        reader(short.ids[:rows], short.mask[:rows])


def test_texts_that_are_none_are_refused(network, short):
    reader = PromptedReader(network, SoftPrompt(normal(P, WIDTH)))
    for ids, mask, message in (
        (short.ids[0], short.mask[0], r"^ids: must be \[B, T\] int64"),
        (short.ids.int(), short.mask, r"^ids: must be \[B, T\] int64"),
        (short.ids, short.mask[:, :4], "^mask: must have the shape of ids"),
        (short.ids, short.mask * 0, "^mask: every row must have a piece"),
        (short.ids, short.mask.flip(1), "^mask: every row must be ones, then zeros"),
    ):
        with pytest.raises(ValueError, match=message):
            reader(ids, mask)


@pytest.mark.parametrize(
    ("vectors", "anchors"), [((P, WIDTH + 1), ()), ((P, WIDTH), [30]), ((P, WIDTH), [-1])]
)
def test_a_prompt_of_another_width_and_unknown_anchors_are_refused(
    network, short, vectors, anchors
):
    reader = PromptedReader(network, SoftPrompt(normal(*vectors)), None, anchors)
    with pytest.raises(ValueError, match="^pieces: "):
        reader(*short)
