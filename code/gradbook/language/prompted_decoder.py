"""Llama behind a soft prompt: what a target costs, and greedy completion.

Whatever goes along with the embeddings moves with them behind the prompt: mask, positions, labels.
A batch is B rows of T tokens, a prompt has p vectors of the decoder's width e. A prefix or an
adapter sits inside the decoder; nothing has to be done for it here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gradbook.checks import require
from gradbook.peft.prompt_starts import require_ids
from gradbook.peft.prompts import IGNORED, prepended, shifted_labels
from gradbook.priors.grids import require_sizes


class PromptedDecoder(nn.Module):
    """A causal decoder, with a prompt in front of all that it reads or without one.

    Args:
        decoder: of transformers; it is not copied.
        prompt: called without arguments, gives [p, e]; or None.

    Raises:
        ValueError: if the decoder is another one than Llama: some scale or
            cap their logits, or the embeddings of tokens.
    """

    def __init__(self, decoder: LlamaForCausalLM, prompt: nn.Module | None):
        super().__init__()
        # A child of the class may compute otherwise.
        if type(decoder) is not LlamaForCausalLM:
            name = type(decoder).__name__
            raise ValueError(f"decoder: must be a LlamaForCausalLM, got {name}")
        self.decoder, self.prompt = decoder, prompt

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of the labelled tokens, in nats.

        Args:
            ids: [B, T] int64.
            mask: [B, T]; ones, then zeros.
            labels: [B, T] int64, -100 where nothing is to be predicted.

        Returns:
            A number.

        Raises:
            ValueError: as :meth:`losses`, or if nothing is predicted.
        """
        each = self.losses(ids, mask, labels)
        if not len(each):
            raise ValueError("labels: must be there behind a token or a prompt")
        return each.mean()

    def losses(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Compute minus the log-probability of every labelled token.

        The logits at a place predict the next one. They are computed
        where they are needed alone: the vocabulary is large. Positions
        count from the prompt on, as the decoder counts by itself.

        Args:
            ids: [B, T] int64.
            mask: [B, T]; ones, then zeros.
            labels: [B, T] int64, -100 where nothing is to be predicted.

        Returns:
            One number per label, in nats, row by row. A label at which
            a row begins is left out unless a prompt stands before it.

        Raises:
            ValueError: if shapes, types, ids or labels do not fit, a row
                of the mask is not ones, then zeros, or a label stands at
                padding.
        """
        self._require_rows(ids, mask)
        require_right(mask)
        self._require_labels(ids, mask, labels)
        embeddings, seen = self._embedded(ids, mask)
        if self.prompt is not None:
            p = embeddings.shape[1] - ids.shape[1]
            labels = shifted_labels(labels, p)
        if not len(ids):
            return embeddings.new_empty(0)
        hidden = self.decoder.base_model(
            inputs_embeds=embeddings,
            attention_mask=seen,
            use_cache=False,
        ).last_hidden_state
        following = labels[:, 1:]
        wanted = following != IGNORED
        states = hidden[:, :-1][wanted]
        logits = self.decoder.get_output_embeddings()(states)
        return F.cross_entropy(logits, following[wanted], reduction="none")

    @torch.no_grad()
    def complete(
        self,
        ids: Tensor,
        mask: Tensor,
        steps: int,
        end: int,
    ) -> Tensor:
        """Go on from texts, each time with the most likely token.

        Args:
            ids: [B, T] int64, padded on the left.
            mask: [B, T]; zeros, then ones. With a prompt T may be 0.
            steps: how many tokens.
            end: the id after which a row is over.

        Returns:
            [B, steps] int64, the new tokens alone; filled with ``end``
            from the first one on.

        Raises:
            ValueError: if shapes or ids do not fit, a row of the mask is
                not zeros, then ones, or ``steps`` is below 1.
        """
        require_sizes(steps=steps)
        self._require_rows(ids, mask)
        self._require_left(mask, end)
        if not len(ids):
            return ids.new_empty(0, steps)
        embeddings, seen = self._embedded(ids, mask)
        new = self.decoder.generate(
            inputs_embeds=embeddings,
            attention_mask=seen,
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        return F.pad(new, (0, steps - new.shape[1]), value=end)

    def _embedded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embed tokens and put the prompt in front: [B, p + T, e] and [B, p + T]."""
        embeddings = self.decoder.get_input_embeddings()(ids)
        if self.prompt is None:
            return embeddings, mask
        return prepended(self.prompt, embeddings, mask)

    def _require_rows(self, ids: Tensor, mask: Tensor) -> None:
        if ids.ndim != 2:
            raise ValueError(f"ids: must be [B, T], got {list(ids.shape)}")
        require_ids(ids, self.decoder.get_input_embeddings().weight, "ids")
        if mask.shape != ids.shape:
            raise ValueError(f"mask: must be {list(ids.shape)}, got {list(mask.shape)}")
        require((mask == 0) | (mask == 1), "mask: must hold zeros and ones")

    def _require_labels(self, ids: Tensor, mask: Tensor, labels: Tensor) -> None:
        if labels.shape != ids.shape:
            raise ValueError(f"labels: must be {list(ids.shape)}, got {list(labels.shape)}")
        kept = labels != IGNORED
        require_ids(labels[kept], self.decoder.get_input_embeddings().weight, "labels")
        require(~kept | (mask == 1), "labels: must not stand at padding")

    def _require_left(self, mask: Tensor, end: int) -> None:
        words = len(self.decoder.get_input_embeddings().weight)
        if not 0 <= end < words:
            raise ValueError(f"end: must be from 0 to {words - 1}, got {end}")
        if not mask.shape[1] and self.prompt is None:
            raise ValueError("ids: without a prompt a row must have a token")
        changes = mask.long().diff(dim=1)
        require(changes >= 0, "mask: every row must be zeros, then ones")
        require(mask[:, -1:] == 1, "mask: every row must be zeros, then ones")


def require_right(mask: Tensor) -> None:
    """Raise unless texts are padded on the right.

    Padding in front of a text would have to predict its first token.

    Args:
        mask: [B, T] of zeros and ones.

    Raises:
        ValueError: if a row is not ones, then zeros.
    """
    never_rises = mask.long().diff(dim=1) <= 0
    require(never_rises, "mask: every row must be ones, then zeros")
