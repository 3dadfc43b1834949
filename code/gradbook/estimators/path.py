"""The gradient along the path of the draw: f differentiated through the sampler."""

from torch import Tensor
from torch.func import grad, vmap

from gradbook.estimators.draws import Family, Objective, Theta, detached, no_gradients, scalar


def pathwise(
    f: Objective,
    family: Family,
    theta: Theta,
    noise: Tensor,
) -> Theta:
    """Estimate the gradient by differentiating f along the path of z.

    One sample is the gradient in theta of f(sample(theta, noise), theta).
    It is unbiased only where f is continuous in z and the path is
    differentiable in theta; nothing here can check that.

    Args:
        f: maps one draw and theta to a scalar.
        family: the distribution of z; only its ``sample`` is used.
        theta: its parameters, a tensor or a container of tensors.
        noise: [n, ...], one row per draw.

    Returns:
        Per-sample gradients, shaped as theta with a leading n.

    Raises:
        ValueError: if theta or noise is not finite, or f is not a scalar.

    Source: Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014.
    """
    theta = detached(theta, noise)
    if len(noise) == 0:
        return no_gradients(theta)

    def objective(theta, noise):
        return scalar("f", f(family.sample(theta, noise), theta))

    return vmap(grad(objective), in_dims=(None, 0))(theta, noise)
