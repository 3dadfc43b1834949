"""Quantizers with a codebook: modules that hold codes, around the functions that do the work.

All quantizers share one interface. ``forward(z)`` makes a :class:`Quantized` of vectors [N, D];
``update(z, indices, generator)`` follows the optimizer's step, in training only, and moves what no
gradient moves; ``decode(indices)`` gives the vectors of codes; ``codes`` is how many codes a
position has. So a step is: lookup, loss, then update.

A codebook that is given has finite numbers and at least one code; it is copied. z is finite, and of
the codebook's width, type and device. An argument that is wrong raises a ValueError that names it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite
from gradbook.codebook_starts import check_codebook, ones_start, restart_unused
from gradbook.codebooks import (
    CodebookState,
    commitment_term,
    ema_update,
    require_amounts,
    require_decay,
    require_indices,
    require_rows,
    vq_loss,
)
from gradbook.gumbel import straight_through
from gradbook.nearest import nearest_code


class Quantized(NamedTuple):
    """What a quantizer makes of vectors.

    Attributes:
        values: [N, D], what the decoder sees; carries the gradient to z.
        loss: a scalar, the quantizer's own terms; 0 where it has none.
        indices: int64 [N]; [N, depth] for residual quantizers.
    """

    values: Tensor
    loss: Tensor
    indices: Tensor


class Codebook(nn.Module):
    """What quantizers with a codebook share: a lookup. A subclass has a ``loss``."""

    codebook: Tensor

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return len(self.codebook)

    def forward(self, z: Tensor) -> Quantized:
        """Replace every vector by the nearest code.

        Args:
            z: [N, D].

        Returns:
            The codes, and the loss of the subclass.
        """
        require_rows(codebook=self.codebook, z=z)
        indices = nearest_code(z, self.codebook)
        z_q = self.codebook[indices]
        values = straight_through(z_q, z)
        return Quantized(values, self.loss(z, z_q), indices)

    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Do nothing, unless a subclass does.

        Args:
            z: [N, D], the vectors of the batch.
            indices: [N], their codes.
            generator: of the CPU.
        """

    def decode(self, indices: Tensor) -> Tensor:
        """Look the vectors of codes up.

        Args:
            indices: int64 [...].

        Returns:
            [..., D].

        Raises:
            ValueError: if an index is no code.
        """
        require_indices(indices, self.codes)
        return self.codebook[indices]


class LossCodebook(Codebook):
    """A codebook that the optimizer trains, by the gradient of the loss.

    Args:
        codebook: where the codes start, [K, D].
        beta: the weight of the commitment, at least 0.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, equation 3.
    """

    def __init__(self, codebook: Tensor, beta: float = 0.25):
        super().__init__()
        check_codebook(codebook)
        require_amounts(beta=beta)
        self.beta = beta
        self.codebook = nn.Parameter(codebook.detach().clone())

    def loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Compute both terms, as :func:`gradbook.codebooks.vq_loss`."""
        return vq_loss(z, z_q, self.beta)


class EmaCodebook(Codebook):
    """A codebook of moving averages: codes follow the means of vectors.

    The averages are buffers, which no optimizer sees. They start as
    :func:`gradbook.codebook_starts.ones_start` says.

    Args:
        codebook: where the codes start, [K, D].
        beta: the weight of the commitment, at least 0.
        decay: of the averages, from 0 to 1.
        eps: of the smoothing, at least 0.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, appendix A.1.
    """

    def __init__(
        self,
        codebook: Tensor,
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
    ):
        super().__init__()
        require_amounts(beta=beta, eps=eps)
        require_decay(decay)
        self.beta, self.decay, self.eps = beta, decay, eps
        for name, value in ones_start(codebook.detach())._asdict().items():
            self.register_buffer(name, value.clone())

    @property
    def state(self) -> CodebookState:
        """The averages and the codes, not copied."""
        return CodebookState(self.counts, self.sums, self.codebook)

    def loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Compute beta times :func:`gradbook.codebooks.commitment_term`."""
        return self.beta * commitment_term(z, z_q)

    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Take a batch into the averages, and move the codes; draw nothing."""
        self._hold(ema_update(self.state, z, indices, self.decay, self.eps))

    def _hold(self, state: CodebookState) -> None:
        for held, new in zip(self.state, state, strict=True):
            held.copy_(new)


class RestartedCodebook(EmaCodebook):
    """A codebook of moving averages whose codes out of use start again at vectors of the batch.

    Args:
        codebook: where the codes start, [K, D].
        beta: the weight of the commitment, at least 0.
        decay: of the averages, from 0 to 1.
        eps: of the smoothing, at least 0.
        threshold: a code whose average count falls below it starts again.

    Source: Dhariwal et al. 2020 (Jukebox), section 3.1.
    """

    def __init__(
        self,
        codebook: Tensor,
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        threshold: float = 1,
    ):
        super().__init__(codebook, beta, decay, eps)
        require_amounts(threshold=threshold)
        self.threshold = threshold

    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Take a batch into the averages, move the codes, then restart those out of use."""
        super().update(z, indices, generator)
        self._hold(restart_unused(self.state, z, generator, self.threshold))


class CosineCodebook(LossCodebook):
    """A codebook of directions: vectors and codes have length 1 wherever they meet.

    The nearest unit code has the largest cosine. As in ViT-VQGAN the loss
    trains the codes, and its distances are those of unit vectors. The
    decoder sees unit codes; its gradient reaches z through the
    normalization, so the length of z gets none.

    Args:
        codebook: where the codes start, [K, D], without a zero row.
        beta: the weight of the commitment, at least 0.

    Source: Yu et al. 2022 (ViT-VQGAN), section 3.2.
    """

    def __init__(self, codebook: Tensor, beta: float = 0.25):
        check_codebook(codebook)
        require(codebook.norm(dim=1) > 0, "codebook: must have no zero row")
        super().__init__(unit(codebook), beta)

    def forward(self, z: Tensor) -> Quantized:
        """Replace every vector by the unit code of the nearest direction."""
        require_rows(codebook=self.codebook, z=z)
        z, codebook = unit(z), unit(self.codebook)
        indices = nearest_code(z, codebook)
        z_q = codebook[indices]
        values = straight_through(z_q, z)
        return Quantized(values, self.loss(z, z_q), indices)

    def decode(self, indices: Tensor) -> Tensor:
        """Look the unit vectors of codes up, as :meth:`Codebook.decode`."""
        return unit(super().decode(indices))


class ProjectedCodebook(nn.Module):
    """A quantizer between two linear maps: the codes live in fewer dimensions.

    Args:
        inner: a quantizer of vectors [N, d].
        down: where the first map starts, [D, d] of finite numbers.
        up: where the second map starts, [d, D] of finite numbers.

    Source: Yu et al. 2022 (ViT-VQGAN), section 3.2.
    """

    def __init__(self, inner: nn.Module, down: Tensor, up: Tensor):
        super().__init__()
        require_rows(down=down)
        if up.shape != down.T.shape:
            raise ValueError(f"up: must be {list(down.T.shape)}, got {list(up.shape)}")
        require_rows(down=down, up=up.T)
        require_finite(down=down, up=up)
        self.inner = inner
        self.down = nn.Parameter(down.detach().clone())
        self.up = nn.Parameter(up.detach().clone())

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return self.inner.codes

    def forward(self, z: Tensor) -> Quantized:
        """Project, quantize, and project back.

        Args:
            z: [N, D].

        Returns:
            Values [N, D]; the loss is the inner quantizer's.
        """
        low = self.inner(self._projected(z))
        return low._replace(values=low.values @ self.up)

    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Update the inner quantizer; the first map is the one after the optimizer's step.

        Args:
            z: [N, D], the vectors of the batch.
            indices: their codes.
            generator: of the CPU.
        """
        self.inner.update(self._projected(z.detach()).detach(), indices, generator)

    def decode(self, indices: Tensor) -> Tensor:
        """Look the vectors of codes up, and project them back to [..., D]."""
        return self.inner.decode(indices) @ self.up

    def _projected(self, z: Tensor) -> Tensor:
        require_rows(down=self.down.T, z=z)
        return z @ self.down


def unit(x: Tensor) -> Tensor:
    """Scale rows to length 1.

    Args:
        x: [..., D].

    Returns:
        Rows of length 1; a zero row stays, and its gradient is finite.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)
