"""Small networks that produce a soft prompt while it is learnt, and are thrown away after.

Input vectors [p, e] of their own go through a network that ties the prompt's vectors together; what
comes out, [p, e], is the prompt. The layers are those of the library peft, so that counts agree.

Source: X. Liu, Y. Zheng, Z. Du, M. Ding, Y. Qian, Z. Yang and J. Tang, 2021, "GPT understands,
too", section 3.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from gradbook.priors.grids import require_sizes


class _PromptEncoder(nn.Module):
    """What the encoders share: their inputs, and the prompt that is kept of them."""

    def __init__(self, length: int, width: int, hidden: int, generator: torch.Generator, to: dict):
        super().__init__()
        require_sizes(length=length, width=width, hidden=hidden)
        drawn = torch.randn(length, width, generator=generator, dtype=torch.float64, device="cpu")
        self.inputs = nn.Parameter(drawn.to(**to))

    def folded(self) -> Tensor:
        """Give the prompt alone, [p, e], for :class:`gradbook.peft.prompts.SoftPrompt`."""
        return self().detach().clone()


class MLPPromptEncoder(_PromptEncoder):
    """Produce each vector of a prompt from its own input, by three linear layers and ReLU.

    Weights and biases are uniform within ``1 / sqrt(n)``, where n is a layer's number of inputs, and
    the inputs standard normal.

    Args:
        length: p.
        width: e.
        hidden: h, numbers in both hidden layers.
        generator: of all start values, on the CPU. Draws are in float64, so that every type gets
            the same numbers, rounded.
        dtype: of the parameters.
        device: of the parameters.

    Attributes:
        inputs: [p, e].
        mlp: the layers, e -> h -> h -> e.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        length: int,
        width: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        to = {"dtype": dtype, "device": device}
        super().__init__(length, width, hidden, generator, to)
        self.mlp = _mlp([width, hidden, hidden, width], generator, to)

    def forward(self) -> Tensor:
        """Produce the prompt, [p, e]."""
        return self.mlp(self.inputs)


class LSTMPromptEncoder(_PromptEncoder):
    """Produce a prompt by an LSTM of two layers in both directions, and two linear layers.

    Each vector depends on all inputs. The LSTM's weights are uniform within ``1 / sqrt(h)``, all
    else is as in :class:`MLPPromptEncoder`.

    Args:
        length: p.
        width: e.
        hidden: h, numbers of one direction's state.
        generator: of all start values, on the CPU.
        dtype: of the parameters.
        device: of the parameters.

    Attributes:
        inputs: [p, e].
        lstm: from e to 2 h.
        mlp: the linear layers with ReLU between them, 2 h -> 2 h -> e.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        length: int,
        width: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        to = {"dtype": dtype, "device": device}
        super().__init__(length, width, hidden, generator, to)
        shape = {"num_layers": 2, "bidirectional": True}
        # torch's own start would draw from the global generator; on "meta" it draws nothing.
        empty = nn.LSTM(width, hidden, **shape, dtype=dtype, device="meta")
        self.lstm = empty.to_empty(device=device)
        _fill(self.lstm, hidden**-0.5, generator)
        self.mlp = _mlp([2 * hidden, 2 * hidden, width], generator, to)

    def forward(self) -> Tensor:
        """Produce the prompt, [p, e]."""
        states, _ = self.lstm(self.inputs)
        return self.mlp(states)


def _mlp(sizes: list[int], generator: torch.Generator, to: dict) -> nn.Sequential:
    """Chain linear layers of these sizes, with ReLU between them."""
    layers = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layer = skip_init(nn.Linear, inputs, outputs, **to)
        _fill(layer, inputs**-0.5, generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def _fill(module: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Draw all of a module's parameters uniformly within a bound."""
    for parameter in module.parameters():
        drawn = torch.empty(parameter.shape, dtype=torch.float64, device="cpu")
        parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
