"""Choose what is trained of a model as it is, and choose modules by their names."""

import re
from collections.abc import Callable

from torch import nn

from gradbook.peft.injection import Report, Where, count

Chosen = Callable[[str, nn.Parameter], bool]


def train_only(model: nn.Module, where: Chosen) -> Report:
    """Train some parameters of a model and freeze all others.

    Args:
        model: its flags ``requires_grad`` are changed.
        where: of a parameter's name and the parameter. One that has several names is trained if it
            holds for one of them.

    Returns:
        The counts, and as ``layers`` the names of the parameters that are trained.

    Raises:
        ValueError: if ``where`` holds for no parameter; the model is as before.
    """
    everything = list(model.named_parameters(remove_duplicate=False))
    chosen = [(name, parameter) for name, parameter in everything if where(name, parameter)]
    if not chosen:
        raise ValueError("where: holds for no parameter of the model")
    for _, parameter in everything:
        parameter.requires_grad_(False)
    for _, parameter in chosen:
        parameter.requires_grad_(True)
    return Report(*count(model), tuple(name for name, _ in chosen))


def named(pattern: str) -> Where:
    """Make a choice of modules by their names.

    Args:
        pattern: a regular expression that the whole name matches.

    Returns:
        What :func:`gradbook.peft.injection.inject` asks of each module.

    Raises:
        ValueError: if the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern: is no regular expression: {error}") from error
    return lambda name, _: compiled.fullmatch(name) is not None


def biases(name: str, parameter: nn.Parameter) -> bool:
    """Choose every bias, those of LayerNorms included: BitFit.

    Args:
        name: of a parameter.
        parameter: not used.

    Returns:
        Whether its name ends with "bias".

    Source: E. Ben Zaken, Y. Goldberg and S. Ravfogel, 2021, "BitFit: simple parameter-efficient
    fine-tuning for transformer-based masked language-models", section 3.
    """
    return name.endswith("bias")


def top_layers(n: int, layers: int) -> Chosen:
    """Choose the parameters of the last layers of an encoder.

    Args:
        n: how many of them.
        layers: that the encoder has; their names contain ``encoder.layer.0.`` and so on.

    Returns:
        What :func:`train_only` asks of each parameter.

    Raises:
        ValueError: if ``n`` is not from 1 to ``layers``.
    """
    if not 1 <= n <= layers:
        raise ValueError(f"n: must be from 1 to {layers}, got {n}")
    parts = [f"encoder.layer.{i}." for i in range(layers - n, layers)]
    return lambda name, _: any(part in name for part in parts)
