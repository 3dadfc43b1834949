"""AdapterFusion: attention over what the adapters of several tasks say, position by position.

The adapters are frozen, so no task forgets; what is learned is where to listen to which.
"""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from gradbook.peft.adapters import ENDS_FEED_FORWARD, Bottleneck, Serial, innermost
from gradbook.peft.injection import Injection, Where, inject, matrix


class Fusion(nn.Module):
    """N frozen adapters at one place, and attention over them.

    With z_n = f_n(h), what adapter n adds to h,

        s = softmax_n(h Q . z_n K),    h' = h + sum_n s_n z_n V.

    The residual is h itself, the adapters' common skip, added after the
    attention and not within z_n. The paper leaves this open; its authors'
    code does so. Within z_n the skip would change no weight, since it adds
    the same h Q . h K to every score, but it would pass through V, and h,
    what the frozen network made, must not depend on V.

    At the start V is the identity, and Q and K are small, so that h'
    nearly averages the adapters. Nothing has a bias. The authors' code
    also adds 0.01 times the squared distance of V from the identity to
    the loss, and nothing here does.

    Args:
        adapters: N of one width, type and device; frozen copies are kept,
            so that training one of the originals later changes nothing.
        generator: of Q and K, on the CPU.
        std: of their normal numbers; 0.02 as BERT's own.

    Attributes:
        adapters: the frozen copies.
        query: Q, [d, d].
        key: K, [d, d].
        value: V, [d, d].

    Raises:
        ValueError: if there are no adapters, or they are not Bottlenecks
            of one width, type and device, or ``std`` is negative or not
            finite.

    Source: Pfeiffer et al. 2020, AdapterFusion, section 3.2.
    """

    def __init__(
        self, adapters: Sequence[Bottleneck], generator: torch.Generator, std: float = 0.02
    ):
        super().__init__()
        _require_alike(adapters)
        if not 0 <= std < math.inf:
            raise ValueError(f"std: must be finite and not negative, got {std}")
        self.adapters = nn.ModuleList(deepcopy(list(adapters))).requires_grad_(False)
        width, like = adapters[0].width, adapters[0].down
        to = {"dtype": like.dtype, "device": like.device}
        draw = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        self.query = nn.Parameter((std * torch.randn(width, width, **draw)).to(**to))
        self.key = nn.Parameter((std * torch.randn(width, width, **draw)).to(**to))
        self.value = nn.Parameter(torch.eye(width, **to))

    def branches(self, h: Tensor) -> Tensor:
        """Compute what each adapter would add.

        Args:
            h: [..., d].

        Returns:
            z, [..., N, d].

        Raises:
            ValueError: if the last axis of h is not d long.
        """
        return torch.stack([adapter.branch(h) for adapter in self.adapters], -2)

    def weights(self, h: Tensor) -> Tensor:
        """Compute how much each adapter is listened to.

        Args:
            h: [..., d].

        Returns:
            s, [..., N]; positive numbers of sum 1.

        Raises:
            ValueError: as :meth:`branches`.
        """
        return self._attend(h, self.branches(h))

    def forward(self, h: Tensor) -> Tensor:
        """Mix the adapters.

        Args:
            h: [..., d].

        Returns:
            h', [..., d].

        Raises:
            ValueError: as :meth:`branches`.
        """
        z = self.branches(h)
        mixed = torch.einsum("...n,...nd->...d", self._attend(h, z), z)
        # V is linear: after the sum it costs one product, not N.
        return h + mixed @ self.value

    def _attend(self, h: Tensor, z: Tensor) -> Tensor:
        asked, offered = h @ self.query, z @ self.key
        scores = torch.einsum("...d,...nd->...n", asked, offered)
        return scores.softmax(-1)


def fusion_parameters(width: int) -> int:
    """Count the trained numbers of one :class:`Fusion`: 3 d^2.

    Args:
        width: d.

    Returns:
        The count, which does not depend on the number of adapters.

    Raises:
        ValueError: if the width is not positive.
    """
    if width < 1:
        raise ValueError(f"width: must be positive, got {width}")
    return 3 * width * width


def fuse(
    model: nn.Module,
    banks: Sequence[Sequence[Bottleneck]],
    generator: torch.Generator,
    where: Where = ENDS_FEED_FORWARD,
) -> Injection:
    """Put the fusion of N tasks' adapters in the place of single ones.

    Where the model has adapters already, they are replaced. The banks
    should come from placements that train nothing else, as
    :func:`gradbook.peft.adapters.pfeiffer`: tasks that also trained the
    LayerNorms have no common ones.

    Args:
        model: with or without adapters; changed in place.
        banks: for each task its adapters in the order of the layers, as
            :func:`gradbook.peft.adapters.adapters_of` lists them.
        generator: of the weights, on the CPU.
        where: chooses the linear layers to be followed, as many as a bank
            has adapters.

    Returns:
        What was done; Q, K and V of every place are trained.

    Raises:
        ValueError: if there are no banks, or one has not an adapter of the
            layer's width and type for every place, or as :class:`Fusion` and
            :func:`gradbook.peft.injection.inject`.

    Source: Pfeiffer et al. 2020, AdapterFusion, section 3.
    """
    if not banks:
        raise ValueError("banks: must not be empty")
    if len({len(bank) for bank in banks}) > 1:
        raise ValueError(f"banks: must be equally long, got {[len(bank) for bank in banks]}")
    columns = iter(list(zip(*banks, strict=True)))
    made = []

    def make(layer: nn.Module) -> nn.Module:
        column = next(columns, None)
        if column is None:
            raise ValueError(f"banks: {len(banks[0])} adapters for more places")
        ours, weight = column[0].up, matrix(innermost(layer))
        found = (ours.shape[1], ours.dtype, ours.device)
        if found != (weight.shape[0], weight.dtype, weight.device):
            wanted = f"width {weight.shape[0]}, type {weight.dtype}, device {weight.device}"
            raise ValueError(f"banks: must have the layer's {wanted}")
        made.append(Serial(innermost(layer), Fusion(column, generator)))
        return made[-1]

    injection = inject(model, where, make)
    if len(made) < len(banks[0]):
        injection.undo()
        raise ValueError(f"banks: {len(banks[0])} adapters for {len(made)} places")
    return injection


def _require_alike(adapters: Sequence[nn.Module]) -> None:
    if not adapters:
        raise ValueError("adapters: must not be empty")
    if not all(isinstance(adapter, Bottleneck) for adapter in adapters):
        raise ValueError("adapters: must be Bottlenecks")
    if len({(a.width, a.down.dtype, a.down.device) for a in adapters}) > 1:
        raise ValueError("adapters: must have one width, type and device")
