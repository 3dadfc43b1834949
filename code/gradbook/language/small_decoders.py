"""Two small decoders trained on Shakespeare: SmolLM2's architecture, and hundreds of times smaller.

A model of the book's own may be trained in minutes, and two that differ in size, and in the step
size of their training, show what a method owes to scale. A trained one is kept in the cache: see
:func:`checkpoint` for its name.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from gradbook import data
from gradbook.devices import device
from gradbook.language import plays, pretraining
from gradbook.language.pretraining import Settings
from gradbook.priors.grids import require_sizes

# Standard deviation of a matrix at the start, as transformers draws it.
SPREAD = 0.02
CONTEXT = 128
SEED = 0


class Size(NamedTuple):
    """The size of a decoder.

    Attributes:
        name: of the checkpoint, too.
        width: of hidden states; heads must divide it into an even number.
        layers: how many.
        heads: of queries, even; half as many of keys and values.
    """

    name: str
    width: int
    layers: int
    heads: int


# 1 023 360 and 4 541 696 parameters, by the formula of parameters.
SMALL = Size("small", 128, 5, 4)
MEDIUM = Size("medium", 256, 6, 8)
# At the rate of the small one the medium one learnt less than that one.
TRAININGS = {SMALL: Settings(rate=3e-3), MEDIUM: Settings(rate=1e-3)}


def parameters(size: Size, pieces: int = plays.PIECES) -> int:
    """Count a decoder's numbers: V e for the embeddings, and those of L layers.

    A layer has queries and outputs of e^2, keys and values of e^2 / 2,
    three matrices of e f between the width and f, and two norms; a norm
    follows the last. The embeddings serve as the output's matrix too, and
    count once.

    Args:
        size: of width e and L layers.
        pieces: V.

    Returns:
        V e + L (3 e^2 + 3 e f + 2 e) + e.

    Raises:
        ValueError: as :func:`configuration`.
    """
    e, f = size.width, configuration(size, pieces).intermediate_size
    return pieces * e + size.layers * (3 * e * e + 3 * e * f + 2 * e) + e


def configuration(size: Size, pieces: int = plays.PIECES) -> LlamaConfig:
    """Describe a decoder as ``transformers`` does.

    Args:
        size: of it.
        pieces: V, of the vocabulary.

    Returns:
        Llama's architecture with tied embeddings, 128 places, heads of keys and values that two
        heads of queries share, and a feed-forward width of 8/3 of the width, rounded down to a
        multiple of 16.

    Raises:
        ValueError: if a size is below 1, or heads are odd or do not divide the width into an even
            number.

    Source: Touvron et al. 2023, "LLaMA", section 2.2; Ainslie et al. 2023, "GQA", section 2.2.
    """
    _, width, layers, heads = size
    require_sizes(width=width, layers=layers, heads=heads, pieces=pieces)
    if heads % 2 or width % (2 * heads):
        raise ValueError(f"size: heads must be even, with an even width each, got {width}/{heads}")
    return LlamaConfig(
        vocab_size=pieces,
        hidden_size=width,
        intermediate_size=max(width * 8 // 3 // 16 * 16, 16),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )


def untrained(
    size: Size, generator: torch.Generator, pieces: int = plays.PIECES
) -> LlamaForCausalLM:
    """Draw a decoder's start: matrices of N(0, 0.02^2), norms of 1.

    Args:
        size: of it.
        generator: of the CPU.
        pieces: V, of the vocabulary.

    Returns:
        The float32 network on the CPU; torch's global generator stays as it was.

    Raises:
        ValueError: as :func:`configuration`.
    """
    config = configuration(size, pieces)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        decoder = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for part in decoder.parameters():
            if part.ndim > 1:
                drawn = torch.randn(
                    part.shape, generator=generator, dtype=torch.float64, device="cpu"
                )
                part.copy_(SPREAD * drawn)
    return decoder


def pretrained(size: Size, settings: Settings) -> LlamaForCausalLM:
    """Read a decoder trained on Shakespeare from the cache, or train it and keep it there.

    A training takes minutes, and the seed of its start and its order is 0. Its numbers are the
    same for one number of threads on one machine, and nearly the same elsewhere.

    Args:
        size: ``SMALL``, ``MEDIUM``, or another.
        settings: of its training; ``TRAININGS`` has those of the two.

    Returns:
        The float32 network on the book's device, in evaluation mode, all parameters trainable.

    Raises:
        FileNotFoundError: if it must be trained and there is no Shakespeare on this machine.
        OSError: if there is no file of it and the cache cannot be written; known before the training.
        ValueError: if the file in the cache is damaged, or as
            :func:`gradbook.language.pretraining.train`.
    """
    path = checkpoint(size, settings)
    generator = torch.Generator().manual_seed(SEED)
    decoder = untrained(size, generator)
    if path.is_file():
        _load(decoder, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = plays.shakespeare()
        known, _ = pretraining.parts(plays.byte_pairs(text), text, settings.length)
        pretraining.train(decoder.to(device()), known, settings, generator)
        _save(decoder, path)
    return decoder.to(device()).eval()


def checkpoint(size: Size, settings: Settings) -> Path:
    """Name the file of a trained decoder, whether or not it is there.

    Args:
        size: of the decoder.
        settings: of its training.

    Returns:
        ``decoders/NAME-DIGEST.safetensors`` in the folder ``.cache`` of the current folder or of the
        first one above it whose ``.cache`` has a folder ``data``, else of the current folder. The
        digest is of the size with its name, the settings, the feed-forward width, the heads of keys
        and values, the context, the spread of the start, the seed, Shakespeare's SHA-256, the size
        of the vocabulary and the number of windows set aside. Code and versions are not in it:
        delete the file after a change of either.
    """
    config = configuration(size)
    drawn = [config.intermediate_size, config.num_key_value_heads, CONTEXT, SPREAD, SEED]
    read = [data.SHAKESPEARE_SHA256, plays.PIECES, pretraining.HELD_OUT]
    whole = json.dumps([*size, *settings, *drawn, *read])
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return _cache() / "decoders" / f"{size.name}-{digest}.safetensors"


def _cache() -> Path:
    here = Path.cwd()
    caches = [folder / ".cache" for folder in (here, *here.parents)]
    # A home folder may have a .cache, too; the book's has data in it.
    return next((cache for cache in caches if (cache / "data").is_dir()), caches[0])


def _save(decoder: nn.Module, path: Path) -> None:
    """Write all parameters; a reader sees the whole file or none."""
    weights = {name: p.detach().cpu().contiguous() for name, p in decoder.named_parameters()}
    # One of every process: two may train at once. Not by tempfile, whose files are private.
    part = path.with_suffix(f".{os.getpid()}")
    try:
        part.write_bytes(safetensors.torch.save(weights))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _load(decoder: nn.Module, path: Path) -> None:
    wanted = dict(decoder.named_parameters())
    try:
        found = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: delete it") from error
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ValueError(f"{path} is damaged: delete it")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
