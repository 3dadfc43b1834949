"""Classify a text by the class whose own sentence it lies nearest to, with a prompt among its inputs.

A masked language model is asked to fill in a word that stands for the class, its verbalizer. An
encoder of sentences predicts no words, but it does place sentences: those of the classes take the
verbalizer's part. Nothing of the reading-out is trained, so that a prompt has to do it all.

Source: S. Schick and H. Schütze, 2021, "Exploiting cloze questions for few shot text classification
and natural language inference", section 3.1 (verbalizers); Radford et al. 2021, "Learning
transferable visual models from natural language supervision", section 3.1 (cosines to class texts).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

from gradbook.checks import require_finite
from gradbook.language import encoder as texts
from gradbook.peft.prompts import positions, template, template_mask

# Logits are cosines times this, the scale that sentence-transformers trains with.
SCALE = 20.0


class SentenceClassifier(nn.Module):
    """Compare a text's vector with those of the classes.

    Args:
        reader: gives a text's vector, [B, width], for ids and mask, [B, T].
        classes: vectors of the classes' sentences, [C, width]; kept at unit length.

    Attributes:
        reader: as given.
        classes: a buffer, not trained.

    Raises:
        ValueError: if the classes are not a finite matrix of at least two rows, or a row is zero.
    """

    def __init__(self, reader: nn.Module, classes: Tensor):
        super().__init__()
        if classes.ndim != 2 or len(classes) < 2:
            raise ValueError(f"classes: must be [C, width], C from 2, got {list(classes.shape)}")
        require_finite(classes=classes)
        if not classes.norm(dim=-1).all():
            raise ValueError("classes: must not be zero")
        self.reader = reader
        self.register_buffer("classes", functional.normalize(classes.detach(), dim=-1))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the logits, 20 times the cosines.

        Args:
            ids: [B, T] int64.
            mask: [B, T]; ones, then zeros.

        Returns:
            [B, C].
        """
        vectors = self.reader(ids, mask)
        return SCALE * functional.normalize(vectors, dim=-1) @ self.classes.T


class Reader(nn.Module):
    """Read texts as they are: the mean of the last hidden states.

    Args:
        encoder: a ``transformers.BertModel``.
    """

    def __init__(self, encoder: BertModel):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute vectors, [B, width]: see :func:`gradbook.language.encoder.pooled`."""
        return texts.pooled(self.encoder, ids, mask)


class PromptedReader(nn.Module):
    """Read texts with soft vectors in front of them and behind.

    The inputs are: vectors in front, the text, anchors, vectors behind. Anchors are real word
    pieces, the same for every text. What is averaged at the end are the states of the text and of
    the anchors; places are counted as if padding were not there.

    Args:
        encoder: a ``transformers.BertModel``.
        prompt: called without arguments, gives [p, e].
        front: how many of the vectors stand in front, up to p; None is all of them.
        anchors: ids of word pieces.

    Raises:
        ValueError: if ``front`` is negative.

    Source: Lester et al. 2021, section 2, where all vectors are in front; Liu et al. 2021, "GPT
    understands, too", section 3, for vectors on both sides and anchors.
    """

    def __init__(
        self,
        encoder: BertModel,
        prompt: nn.Module,
        front: int | None = None,
        anchors: Sequence[int] = (),
    ):
        super().__init__()
        if front is not None and front < 0:
            raise ValueError(f"front: must not be negative, got {front}")
        self.encoder, self.prompt, self.front = encoder, prompt, front
        self.anchors = tuple(anchors)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute vectors of texts.

        Args:
            ids: [B, T] int64.
            mask: [B, T]; ones, then zeros.

        Returns:
            [B, width].

        Raises:
            ValueError: if the shapes are not these, a row of the mask is not ones, then zeros, or
                ``front`` is more than the prompt has.
        """
        texts.require_tokens(ids, mask)
        if not len(ids):
            width = self.encoder.config.hidden_size
            return self.prompt().new_zeros(0, width)
        table = self.encoder.get_input_embeddings().weight
        vectors = self.prompt()
        front = len(vectors) if self.front is None else self.front
        if front > len(vectors):
            raise ValueError(f"front: must be at most {len(vectors)}, got {front}")
        anchors = torch.tensor(self.anchors, dtype=torch.int64, device=ids.device)
        filled = template(table, [vectors[:front], ids, anchors, vectors[front:]])
        seen = template_mask(filled, 1, mask)
        hidden = self.encoder(
            inputs_embeds=filled.embeddings,
            attention_mask=seen,
            position_ids=positions(seen),
        ).last_hidden_state
        _, text, anchor, _ = filled.places
        read = torch.zeros_like(seen)
        read[:, text], read[:, anchor] = mask, 1
        weights = read.to(hidden.dtype)[..., None]
        return (weights * hidden).sum(1) / weights.sum(1)


@torch.no_grad()
def class_vectors(encoder: BertModel, sentences: Sequence[str]) -> Tensor:
    """Compute the vectors of the classes' own sentences.

    Args:
        encoder: as it is before anything is put into it.
        sentences: one for each class; longer ones are cut to 40 word pieces.

    Returns:
        [C, width].

    Raises:
        ValueError: if there are fewer than two.
    """
    if len(sentences) < 2:
        raise ValueError(f"sentences: must be at least two, got {len(sentences)}")
    tokens = texts.encode(sentences)
    return texts.pooled(encoder, *texts.trimmed(tokens, torch.arange(len(sentences))))
