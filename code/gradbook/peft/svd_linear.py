"""The layer of AdaLoRA: P diag(E) Q beside a frozen matrix, whose triplets can be switched off.

Triplet i is the number E_i, the column i of P and the row i of Q. P and Q are held near orthogonal
by a penalty, so that E is nearly the singular values of what is learnt.

Source: Q. Zhang, M. Chen, A. Bukharin, N. Karampatziakis, P. He, Y. Cheng, W. Chen and T. Zhao,
2023, "Adaptive budget allocation for parameter-efficient fine-tuning" (AdaLoRA).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gradbook.peft.injection import matrix, places, require_input
from gradbook.peft.lora import LoRALinear, over_rank, require_factor, require_rank
from gradbook.peft.merging import Mergeable

SPREAD = 0.02


def over_guarded_rank(alpha: float, rank: int) -> float:
    """Compute the factor of AdaLoRA's code and of peft, alpha / (r + 0.00001).

    There r is the rank at the start, also after triplets have been switched off.
    """
    return alpha / (rank + 1e-5)


class SVDLinear(Mergeable):
    """A linear layer W, and beside it scaling P diag(E) Q, which is zero at the start.

    P, [out, r], and Q, [r, in], are normal with deviation 0.02. E, [r], is zero. The factor does
    not follow the rank when triplets are switched off.

    Args:
        layer: W, linear, as for :func:`gradbook.peft.injection.matrix`; is frozen.
        rank: r at the start, from 1 to the smaller side of W.
        alpha: positive.
        generator: of P and then Q, of the CPU; without one they are drawn by torch's own.
        scale: the factor of the product, of alpha and the rank.

    Raises:
        ValueError: if the rank is out of range, alpha or the factor is not positive and finite, or
            the layer is not linear.

    Source: Zhang et al. 2023, section 3.1; the deviation is that of its code.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        scale: Callable[[float, int], float] = over_rank,
    ):
        weight = matrix(layer)
        require_rank(rank, weight)
        require_factor(alpha=alpha)
        scaling = scale(alpha, rank)
        require_factor(scaling=scaling)
        super().__init__(layer)
        outputs, inputs = weight.shape

        def drawn(*shape: int) -> nn.Parameter:
            values = torch.empty(shape, dtype=torch.float64, device="cpu")
            values.normal_(0, SPREAD, generator=generator)
            return nn.Parameter(values.to(weight))

        self.scaling = scaling
        self.P = drawn(outputs, rank)
        self.E = nn.Parameter(torch.zeros(rank, dtype=weight.dtype, device=weight.device))
        self.Q = drawn(rank, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``W x + bias + s P diag(E) Q x``; after a merge W alone.

        Args:
            x: [..., in].

        Returns:
            [..., out].

        Raises:
            ValueError: as :func:`gradbook.peft.injection.require_input`.
        """
        require_input(x, self.layer)
        if self.merged:
            return self.layer(x)
        extra = (x @ self.Q.T * self.E) @ self.P.T
        return self.layer(x) + self.scaling * extra

    def delta(self) -> Tensor:
        """Compute what is added to W, scaling P diag(E) Q.

        Returns:
            [out, in].
        """
        return self.scaling * (self.P * self.E) @ self.Q


def svd_layers(model: nn.Module) -> dict[str, SVDLinear]:
    """Find a model's layers of this kind, each once, in the order of the model.

    Args:
        model: any.

    Returns:
        The layers by name.

    Raises:
        ValueError: if there is none.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, SVDLinear)}
    if not found:
        raise ValueError("model: must have a SVDLinear, has none")
    return found


def ranks(model: nn.Module) -> dict[str, int]:
    """Count the triplets that are in use: the numbers E that are not zero.

    P, E and Q keep their shapes when triplets are switched off, so shapes tell nothing.

    Args:
        model: as for :func:`svd_layers`.

    Returns:
        The ranks by name.

    Raises:
        ValueError: as :func:`svd_layers`.
    """
    return {name: int(m.E.count_nonzero()) for name, m in svd_layers(model).items()}


def orthogonality(model: nn.Module) -> Tensor:
    """Average ``|P'P - I|^2`` and ``|QQ' - I|^2`` (Frobenius) over all P and Q.

    Args:
        model: as for :func:`svd_layers`.

    Returns:
        A scalar, to be added to the loss with a weight; 0 where all are orthogonal.

    Raises:
        ValueError: as :func:`svd_layers`.

    Source: Zhang et al. 2023, equation 4, which is summed, not averaged.
    """
    terms = [gap.square().sum() for gap in _gaps(model)]
    return torch.stack(terms).mean()


def orthogonality_norm(model: nn.Module) -> Tensor:
    """Average the norms that :func:`orthogonality` squares, as AdaLoRA's code and peft do.

    Its slope keeps its size on the way to 0, so steps of fixed length end up jumping around it.

    Args:
        model: as for :func:`svd_layers`.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`svd_layers`.
    """
    terms = [torch.linalg.matrix_norm(gap) for gap in _gaps(model)]
    return torch.stack(terms).mean()


@torch.no_grad()
def prune(model: nn.Module) -> dict[str, int]:
    """Put a LoRA of exactly the rank in use in the place of every layer, or W alone at rank 0.

    A, [k, in], is the rows of Q in use and B, [out, k], the columns of P times E. They are trained
    where Q, or P or E, was. The outputs stay. What was injected cannot be undone any more.

    Args:
        model: changed in place. One that is such a layer itself is refused, as it stands in no
            place where another could be put.

    Returns:
        The ranks by name, of every place.

    Raises:
        ValueError: if the model has no such layer inside.
        RuntimeError: if one is merged.
    """
    found = places(model, lambda _, module: isinstance(module, SVDLinear))
    if merged := [place.name for place in found if place.module.merged]:
        raise RuntimeError(f"prune: {merged[0]} is merged")
    made = {module: _pruned(module) for module in dict.fromkeys(p.module for p in found)}
    for place in found:
        setattr(place.parent, place.key, made[place.module])
    return {place.name: int(place.module.E.count_nonzero()) for place in found}


def _pruned(module: SVDLinear) -> nn.Module:
    used = module.E != 0
    rank = int(used.sum())
    if rank == 0:
        return module.layer
    columns = (module.P * module.E)[:, used]
    lora = LoRALinear.of(module.layer, module.Q[used], columns, module.scaling)
    # Under no_grad nothing above says what was trained.
    lora.A.requires_grad_(module.Q.requires_grad)
    lora.B.requires_grad_(module.P.requires_grad or module.E.requires_grad)
    return lora.train(module.training)


def _gaps(model: nn.Module) -> Iterator[Tensor]:
    """Give P'P - I and QQ' - I of every layer."""
    for module in svd_layers(model).values():
        for rows in (module.P.T, module.Q):
            eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            yield rows @ rows.T - eye
