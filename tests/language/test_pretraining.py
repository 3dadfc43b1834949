"""Training on windows against a loop of its own, and losses in bits a character."""

import copy
import math

import pytest
import torch

from gradbook.language import plays, pretraining, small_decoders
from gradbook.language.descent import DECAY, LARGEST_NORM
from gradbook.language.pretraining import Settings
from gradbook.language.small_decoders import Size

TINY = Size("tiny", 8, 1, 2)
VERSE = "the then thee there other, the moth. the the\nthe heath " * 40
SETTINGS = Settings(steps=7, batch=2, length=5, rate=1e-2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def decoder(seed=0, pieces=100):
    return small_decoders.untrained(TINY, generator(seed), pieces).double()


@pytest.fixture(scope="module")
def tokenizer():
    return plays.byte_pairs(VERSE, 100)


def by_hand(model, ids, settings, order):
    """AdamW with its formulas; the rate rises in one step and falls to a seventh."""
    rows = ids[: len(ids) // settings.length * settings.length].reshape(-1, settings.length)
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()}
    losses = []
    for t in range(1, settings.steps + 1):
        batch = rows[order[t - 1]]
        logs = model(input_ids=batch).logits.log_softmax(-1)[:, :-1]
        loss = -logs.gather(-1, batch[:, 1:, None]).mean()
        losses.append(loss.item())
        grads = dict(zip(moments, torch.autograd.grad(loss, list(moments)), strict=True))
        norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
        rate = settings.rate * (settings.steps - t + 1) / settings.steps
        with torch.no_grad():
            for p, (m, v) in moments.items():
                g = grads[p] * min(1, LARGEST_NORM / (norm + 1e-6))
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.001)
                p.mul_(1 - rate * DECAY * (p.ndim > 1))
                seen = m / (1 - 0.9**t), v / (1 - 0.999**t)
                p.sub_(rate * seen[0] / (seen[1].sqrt() + 1e-8))
    return losses


def test_training_is_adamw_on_shuffled_windows():
    ids = torch.randint(100, (33,), generator=generator(1))
    # Six windows are three steps; then they are shuffled again.
    again, order = generator(5), []
    for _ in range(3):
        order += torch.randperm(6, generator=again).split(2)
    model = decoder()
    other = copy.deepcopy(model)
    losses = pretraining.train(model, ids, SETTINGS, generator(5))
    assert losses == pytest.approx(by_hand(other, ids, SETTINGS, order), rel=1e-9)
    for found, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_windows_that_do_not_fill_a_batch_wait_for_the_next_shuffle():
    ids = torch.randint(100, (25,), generator=generator(1))
    seen = []
    model = decoder()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    pretraining.train(model, ids, SETTINGS._replace(steps=4), generator(5))
    again = generator(5)
    orders = [torch.randperm(5, generator=again) for _ in range(2)]
    expected = [ids.reshape(5, 5)[rows] for order in orders for rows in (order[:2], order[2:4])]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_training_learns_what_repeats():
    ids = torch.arange(12).repeat(60)
    losses = pretraining.train(decoder(), ids, Settings(60, 8, 12, 3e-2), generator())
    assert losses[0] == pytest.approx(math.log(100), rel=0.02)
    # Only the first pieces of windows vary, and they are given.
    assert losses[-1] < 0.5


def test_losses_are_those_of_transformers():
    rows = torch.randint(100, (3, 7), generator=generator(2))
    model = decoder(1)
    losses = pretraining.next_piece_losses(model, rows)
    assert losses.shape == (3, 6)
    whole = model(input_ids=rows, labels=rows).loss
    # transformers computes the loss in float32.
    assert losses.mean().item() == pytest.approx(whole.item(), rel=1e-5)
    changed = rows.clone()
    changed[:, -1] = (rows[:, -1] + 1) % 100
    other = pretraining.next_piece_losses(model, changed)
    assert torch.equal(losses[:, :-1], other[:, :-1])
    assert not torch.equal(losses[:, -1], other[:, -1])


def test_bits_are_of_the_characters_that_were_predicted(tokenizer):
    model = decoder()
    rows = plays.windows(plays.tokens(tokenizer, VERSE), 6)[:20]
    with torch.no_grad():
        for part in model.parameters():
            part.zero_()
    count = sum(len(tokenizer.decode(row[1:].tolist())) for row in rows)
    # Without any weights all 100 pieces are equally likely.
    found = pretraining.bits_per_character(model, tokenizer, rows)
    assert found == pytest.approx(100 * math.log2(100) / count, rel=1e-6)
    model = decoder(3)
    with torch.no_grad():
        nats = pretraining.next_piece_losses(model, rows).sum().item()
    found = pretraining.bits_per_character(model, tokenizer, rows)
    assert found == pytest.approx(nats / math.log(2) / count, rel=1e-9)


def test_the_end_of_a_text_is_set_aside(tokenizer):
    known, held_out = pretraining.parts(tokenizer, VERSE, 3)
    assert held_out.shape == (64, 3)
    assert torch.equal(torch.cat([known, held_out.flatten()]), plays.tokens(tokenizer, VERSE))


IDS = torch.zeros(40, dtype=torch.int64)
BAD = [
    ({"steps": 0}, "steps: "),
    ({"batch": 0}, "batch: "),
    ({"rate": 0.0}, "rate: must be positive"),
    ({"rate": math.nan}, "rate: must be finite"),
    ({"length": 1}, "length: must be from 2 to 128, got 1"),
    ({"length": 129}, "length: must be from 2 to 128, got 129"),
    ({"batch": 9}, "ids: must be at least 9 windows, got 8"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        pretraining.train(decoder(), IDS, SETTINGS._replace(**change), generator())


def test_bad_texts_are_named(tokenizer):
    for ids in (IDS + 100, IDS - 1):
        with pytest.raises(ValueError, match="^ids: must be below 100"):
            pretraining.train(decoder(), ids, SETTINGS, generator())
    for ids in (IDS.double(), IDS[:, None]):
        with pytest.raises(ValueError, match="^ids: must be \\[n\\] int64"):
            pretraining.train(decoder(), ids, SETTINGS, generator())
    with pytest.raises(ValueError, match="^text: must be longer than 64 windows"):
        pretraining.parts(tokenizer, "e" * 192, 3)
