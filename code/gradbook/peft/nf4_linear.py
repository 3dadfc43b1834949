"""A frozen linear layer that is kept in 4 bits.

Its weights exist in full only while a product is computed, in the forward pass and once more in the
backward pass.

Source: T. Dettmers, A. Pagnoni, A. Holtzman and L. Zettlemoyer, 2023, "QLoRA: efficient finetuning
of quantized LLMs", section 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.peft.double_quantization import (
    SECOND,
    QuantizedScales,
    double_dequantize,
    double_quantize,
)
from gradbook.peft.injection import matrix
from gradbook.peft.nf4 import dequantize_nf4, quantize_nf4


class Scales(nn.Module):
    """Hold the scales of blocks as they are; called without arguments, it gives them.

    Args:
        absmax: [n].
    """

    def __init__(self, absmax: Tensor):
        super().__init__()
        self.register_buffer("absmax", absmax)

    def forward(self) -> Tensor:
        """Give the scales, [n]."""
        return self.absmax


class DoubleScales(nn.Module):
    """Hold the scales of blocks as bytes; called without arguments, it gives their values.

    Args:
        absmax: [n].

    Raises:
        ValueError: as :func:`gradbook.peft.double_quantization.double_quantize`.

    Source: Dettmers et al. 2023, section 3.
    """

    def __init__(self, absmax: Tensor):
        super().__init__()
        for name, part in double_quantize(absmax, SECOND)._asdict().items():
            self.register_buffer(name, part)

    def forward(self) -> Tensor:
        """Give the scales, [n]."""
        parts = QuantizedScales(self.indices, self.absmax, self.mean)
        return double_dequantize(parts, SECOND)


class FrozenProduct(torch.autograd.Function):
    """Multiply with a matrix that is decoded when it is needed, and not kept in between."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        bias: Tensor | None,
        decode: Callable[[], Tensor],
    ) -> Tensor:
        """Compute ``W x + bias``.

        Args:
            ctx: keeps ``decode``.
            x: [..., in].
            bias: [out], frozen, or None.
            decode: gives W, [out, in], now and in the backward pass.

        Returns:
            [..., out].
        """
        ctx.decode = decode
        return functional.linear(x, decode(), bias)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        slope: Tensor,
    ) -> tuple[Tensor, None, None]:
        """Compute the gradient of x, which is exact: W^T times slope.

        Args:
            ctx: of the forward pass.
            slope: the gradient of the output, [..., out].

        Returns:
            [..., in], and nothing for the others.
        """
        return slope @ ctx.decode().to(slope.dtype), None, None


class NF4Linear(nn.Module):
    """A frozen linear layer whose weights are kept in NF4.

    The layer it is made of is not kept. Weights, scales and bias are buffers, so that nothing of it
    is trained. Scales must stay float32 or float64: a cast of the model to 16 bits makes it refuse.

    Args:
        linear: as for :func:`gradbook.peft.injection.matrix`.
        block_size: B; it divides the number of weights and is even.
        scales: makes of absmax [n] the module that holds it: :class:`Scales` or
            :class:`DoubleScales`.

    Raises:
        ValueError: if the layer is not linear, or as :func:`gradbook.peft.nf4.quantize_nf4`.

    Source: Dettmers et al. 2023, section 3.
    """

    def __init__(
        self,
        linear: nn.Module,
        block_size: int = 64,
        scales: Callable[[Tensor], nn.Module] = Scales,
    ):
        super().__init__()
        weight = matrix(linear).detach()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.block_size, self.scales_kind = weight.dtype, block_size, scales
        self.quantize(weight)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def quantize(self, weight: Tensor) -> None:
        """Put other weights in place of those that are kept.

        Args:
            weight: [out, in].

        Raises:
            ValueError: if the shape is another, or as :func:`gradbook.peft.nf4.quantize_nf4`.
        """
        want = self.out_features, self.in_features
        if weight.shape != want:
            raise ValueError(f"weight: must be {list(want)}, got {list(weight.shape)}")
        packed, absmax = quantize_nf4(weight, self.block_size)
        self.register_buffer("packed", packed)
        self.scales = self.scales_kind(absmax)

    def decoded(self) -> Tensor:
        """Compute the weights, [out, in]."""
        return self._decoder()()

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``W x + bias`` with the decoded W.

        Args:
            x: [..., in], of the type of the weights that were given; inside autocast of any type.

        Returns:
            [..., out].

        Raises:
            ValueError: if x has another width or type.
        """
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x: must be [..., {self.in_features}], is {list(x.shape)}")
        if x.dtype != self.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x: must be {self.dtype}, is {x.dtype}")
        return FrozenProduct.apply(x, self.bias, self._decoder())

    def linear(self) -> nn.Linear:
        """Make an ordinary layer, frozen, of the decoded weights and the bias."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        made.weight = nn.Parameter(self.decoded(), requires_grad=False)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return made

    def _decoder(self) -> Callable[[], Tensor]:
        # What a backward pass decodes is what its forward pass did, whatever came in between.
        packed, scales, dtype = self.packed, self.scales, self.dtype
        shape = self.out_features, self.in_features
        return lambda: dequantize_nf4(packed, scales(), shape, dtype)
