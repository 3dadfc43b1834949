"""Examples token by token, training against AdamW written out, measures and texts."""

import copy
import math

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradbook.language import completion, descent, schedule
from gradbook.language.completion import Examples, PromptedDecoder
from gradbook.language.descent import Setting
from gradbook.peft.prompts import SoftPrompt

LETTERS = "abcdefghijklmno"
END = len(LETTERS)
WORDS, WIDTH = END + 1, 8


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def letters(end="."):
    """Makes a tokenizer of which a token is a letter; it puts marks around texts unless told not to."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS + ".")}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "a"))
    single = tokenizers.Regex(".")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(single, "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="o $A o", special_tokens=[("o", vocabulary["o"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end)


TOKENIZER = letters()


def tiny(prompt=3, frozen=False):
    """Makes a model of width 8, always the same one."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=END,
    )
    with torch.random.fork_rng(devices=[]):
        decoder = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for i, (name, part) in enumerate(decoder.named_parameters()):
            part.copy_(normal(*part.shape, seed=i) * 0.5 + float("norm" in name))
    decoder.requires_grad_(not frozen)
    return PromptedDecoder(decoder, SoftPrompt(normal(prompt, WIDTH, seed=90)) if prompt else None)


def pairs(count=7, seed=0):
    """Random examples of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def text(least):
        size = torch.randint(least, 6, (), generator=generator).item()
        return "".join(LETTERS[i] for i in torch.randint(END, (size,), generator=generator))

    sources, targets = [text(1) for _ in range(count)], [text(0) for _ in range(count)]
    return completion.examples(TOKENIZER, sources, targets, 20)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def test_a_source_is_read_and_a_target_with_its_end_is_learned():
    found = completion.examples(TOKENIZER, ["ab", "", "c"], ["c", "de", ""], 4)
    assert found.ids.tolist() == [[0, 1, 2, END], [3, 4, END, END], [2, END, END, END]]
    assert found.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    none = -100
    assert found.labels.tolist() == [
        [none, none, 2, END],
        [3, 4, END, none],
        [none, END, none, none],
    ]
    assert {part.dtype for part in found} == {torch.int64}
    nothing = completion.examples(TOKENIZER, [], [], 4)
    assert [part.shape for part in nothing] == [(0, 0)] * 3


def test_examples_stand_where_the_book_computes(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "meta")
    found = completion.examples(TOKENIZER, ["ab"], ["c"], 4)
    found += completion.sources_to_complete(TOKENIZER, ["ab"])
    assert {part.device.type for part in found} == {"meta"}


def test_sources_to_complete_are_padded_on_the_left():
    ids, mask = completion.sources_to_complete(TOKENIZER, ["ab", "cde", ""])
    assert ids.tolist() == [[END, 0, 1], [2, 3, 4], [END] * 3]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert completion.sources_to_complete(TOKENIZER, []).ids.shape == (0, 0)


def test_a_step_is_adamws_written_out():
    """Of a prompt alone: a matrix, so that it decays; the decoder stays as it was."""
    model, examples = tiny(frozen=True), pairs(4)
    before = copy.deepcopy(model.state_dict())
    start = model.prompt.vectors.detach().clone().requires_grad_()
    loss = PromptedDecoder(model.decoder, lambda: start).loss(*examples)
    slope = torch.autograd.grad(loss, start)[0]
    slope = slope / max(1.0, slope.norm().item() / descent.LARGEST_NORM)
    rate = 0.1
    expected = start - rate * descent.DECAY * start - rate * slope / (slope.abs() + 1e-8)
    course = completion.fit(model, examples, Setting(epochs=1, batch=4, rate=rate), 0)
    assert course.losses == [pytest.approx(loss.item(), rel=1e-6)]
    # clip_grad_norm_ adds 1e-6 to the norm, and the first step forgets the size of a slope.
    torch.testing.assert_close(model.prompt.vectors, expected, rtol=1e-6, atol=1e-6)
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["prompt.vectors"]


def test_a_large_gradient_is_clipped():
    model, examples = tiny(), pairs(4)
    with torch.no_grad():
        model.decoder.model.norm.weight.mul_(100)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    completion.step(model, optimizer, examples)
    norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
    assert norm.item() == pytest.approx(descent.LARGEST_NORM, rel=1e-6)


def test_steps_start_from_no_old_gradient():
    model, examples = tiny(), pairs(4)
    slopes = []
    for _ in range(2):
        completion.step(model, torch.optim.SGD(model.parameters(), lr=0.0), examples)
        slopes.append(model.prompt.vectors.grad.clone())
    assert torch.equal(*slopes)


def test_everything_that_may_train_does():
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    completion.fit(model, pairs(), Setting(epochs=1, batch=3, rate=1e-2), 0)
    after = model.state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_the_rate_follows_the_schedule_and_every_row_comes_once_a_pass(monkeypatch):
    rates, seen = [], []

    def step(model, optimizer, batch, penalty):
        rates.extend({group["lr"] for group in optimizer.param_groups})
        seen.append(batch)
        return 0.5

    monkeypatch.setattr(completion, "step", step)
    examples = pairs(7)
    course = completion.fit(tiny(), examples, Setting(epochs=2, batch=3, rate=2.0), 0)
    assert course.losses == [0.5] * 6
    assert rates == [2.0 * schedule.share(i, 6) for i in range(6)]
    for part in (seen[:3], seen[3:]):
        found = sorted(
            ids[mask == 1].tolist() for few in part for ids, mask in zip(*few[:2], strict=True)
        )
        assert found == sorted(
            ids[mask == 1].tolist() for ids, mask in zip(*examples[:2], strict=True)
        )


def test_a_seed_repeats_a_training_and_another_does_not():
    before = torch.get_rng_state()
    setting = Setting(epochs=1, batch=2)
    losses = [completion.fit(tiny(), pairs(), setting, seed).losses for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_penalty_adds_its_gradient_and_the_loss_comes_back_without_it():
    examples, models = pairs(4), (tiny(frozen=True), tiny(frozen=True))
    for model in models:
        with torch.no_grad():
            # A small slope of everything is not clipped.
            model.decoder.model.norm.weight.mul_(1e-3)
    plain, other = (model.prompt.vectors for model in models)
    start = other.detach().clone()
    losses = [
        completion.step(model, torch.optim.SGD([model.prompt.vectors], 1e-3), examples, penalty)
        for model, penalty in zip(models, (None, lambda: 0.01 * other.square().sum()), strict=True)
    ]
    assert losses[0] == losses[1]
    assert 0 < other.grad.norm() < 1
    torch.testing.assert_close(other.grad, plain.grad + 0.02 * start, rtol=1e-9, atol=1e-12)


def test_a_training_takes_an_optimizer_a_penalty_and_what_comes_after():
    model, seen = tiny(frozen=True), []

    def penalty():
        seen.append("penalty")
        return 1e3 * model.prompt.vectors.square().sum()

    def after():
        # Clipped to its largest norm, which the penalty's slope alone exceeds.
        seen.append(round(model.prompt.vectors.grad.norm().item(), 4))

    def optimizer(network, rate):
        assert network is model
        return torch.optim.SGD([network.prompt.vectors], rate)

    start, setting = model.prompt.vectors.detach().clone(), Setting(epochs=2, batch=4, rate=0.1)
    course = completion.fit(model, pairs(7), setting, 0, optimizer, penalty, after)
    assert seen == ["penalty", descent.LARGEST_NORM] * 4
    assert len(course.losses) == 4
    # Steps of 0.1, 0.075, 0.05 and 0.025 along a slope of norm 1 that points away from 0.
    gone = start.norm() - model.prompt.vectors.norm()
    assert gone.item() == pytest.approx(0.25, abs=1e-3)


def test_a_rule_is_learned_and_then_followed():
    sources, targets = list("abcd"), list("bcda")
    model = tiny(prompt=2)
    examples = completion.examples(TOKENIZER, sources, targets, 10)
    course = completion.fit(model, examples, Setting(epochs=60, batch=4, rate=5e-2), 0)
    assert course.losses[0] > 1
    assert completion.nats_per_token(model, examples, 3) < 0.1
    assert completion.completions(model, TOKENIZER, sources, 4, 3) == targets


@pytest.mark.parametrize("batch", [1, 3, 50])
@pytest.mark.parametrize("prompt", [0, 3])
def test_nats_are_sums_over_tokens_in_batches_of_any_size(batch, prompt):
    model, examples = tiny(prompt), pairs()
    expected = [
        loss.item()
        for row in range(7)
        for loss in model.losses(*(part[row : row + 1] for part in examples))
    ]
    found = completion.nats(model, examples, batch)
    # Whatever the type, transformers computes Llama's norms in float32.
    assert found.total == pytest.approx(sum(expected), rel=1e-6)
    assert found.tokens == len(expected) == (examples.labels != -100).sum()
    mean = completion.nats_per_token(model, examples, batch)
    assert mean == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_without_a_prompt_nothing_predicts_the_first_token_of_a_text():
    examples = completion.examples(TOKENIZER, ["", ""], ["abc", "a"], 9)
    assert completion.nats(tiny(0), examples, 2).tokens == 4
    assert completion.nats(tiny(1), examples, 2).tokens == 6
    single = Examples(*(part[:, :1] for part in examples))
    with pytest.raises(ValueError, match="^examples: must have labels"):
        completion.nats_per_token(tiny(0), single, 2)


def test_completions_come_in_the_order_of_the_sources_and_stop_at_the_end():
    model, sources = tiny(), ["abcde", "a", "lm", "bcd", "nnnn", "k"]
    expected = []
    for source in sources:
        tokens = completion.sources_to_complete(TOKENIZER, [source])
        text = "".join((LETTERS + ".")[i] for i in model.complete(*tokens, 8, END)[0])
        expected.append(text.split(".")[0])
    assert len(set(expected)) > 1
    assert completion.completions(model, TOKENIZER, sources, 8, 4) == expected
    assert completion.completions(model, TOKENIZER, [], 8, 4) == []


def test_a_completion_ends_before_its_first_end(monkeypatch):
    rows = torch.tensor([[1, END, END], [2, 3, 4], [END, END, END]])
    monkeypatch.setattr(PromptedDecoder, "complete", lambda *_: rows)
    assert completion.completions(tiny(), TOKENIZER, ["a", "b", "c"], 3, 3) == ["b", "cde", ""]


def test_a_gradient_that_is_not_finite_ends_the_training():
    model = tiny()
    with torch.no_grad():
        model.decoder.model.norm.weight[0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        completion.fit(model, pairs(), Setting(), 0)


def test_what_does_not_fit_is_named():
    model, examples = tiny(), pairs()
    none = Examples(*(part[:0] for part in examples))
    left = examples._replace(mask=examples.mask.flip(1))
    # Cut to its one token's width it would be empty, and nobody would notice.
    lost = Examples(*(torch.tensor([row]) for row in ([0, 0, 1], [0, 0, 1], [-100, -100, 1])))
    endless = letters(None)
    make = completion.examples

    def fit(network=model, rows=examples, **setting):
        return lambda: completion.fit(network, rows, Setting(**setting), 0)

    for call, message in [
        (lambda: make(TOKENIZER, ["ab"], ["c"], 3), "longest: a pair has 4"),
        (lambda: make(TOKENIZER, [], [], 0), "longest: must"),
        (lambda: make(TOKENIZER, "ab", ["a", "b"], 9), "sources: "),
        (lambda: make(TOKENIZER, ["a"], [1], 9), "targets: must be a sequence"),
        (lambda: make(TOKENIZER, ["a"], ["a", "b"], 9), "targets: must be 1 texts, got 2"),
        (lambda: make(endless, ["a"], ["b"], 9), "tokenizer: "),
        (lambda: completion.sources_to_complete(endless, ["a"]), "tokenizer: "),
        (lambda: completion.sources_to_complete(TOKENIZER, [None]), "sources: "),
        (fit(epochs=0), "epochs: "),
        (fit(batch=0), "batch: "),
        (fit(rate=0.0), "setting: rate"),
        (fit(rate=math.nan), "setting: rate"),
        (fit(rate=math.inf), "setting: rate"),
        (fit(rows=none), "examples: "),
        (fit(rows=left), "mask: every row must be ones"),
        (fit(network=tiny().requires_grad_(False)), "model: "),
        (lambda: completion.nats(model, none, 2), "examples: "),
        (lambda: completion.nats(model, left, 2), "mask: every row must be ones"),
        (lambda: completion.nats(model, lost, 2), "mask: every row must be ones"),
        (lambda: completion.nats(model, examples, 0), "batch: "),
        (lambda: completion.completions(model, TOKENIZER, ["a"], 0, 2), "steps: "),
        (lambda: completion.completions(model, TOKENIZER, ["a"], 2, 0), "batch: "),
        (lambda: completion.completions(model, TOKENIZER, ["a", ""], 2, 2), "mask: "),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
