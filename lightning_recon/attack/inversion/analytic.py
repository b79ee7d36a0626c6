# SPDX-License-Identifier: Apache-2.0
"""Analytic inversion: the gradient of a fully connected first layer reveals a single image.

The weight's gradient is the bias's gradient times the image, δ xᵀ and δ: no search is needed, and the noise of the
estimate of x is known.
"""

import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.functional_model import FunctionalModel, inputs_of
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.errors import UserError

_NEEDED = "--model.init revealed needs: set --model.init to mean, noise or patches"


def first_linear(model: FunctionalModel, shape: tuple[int, int, int]) -> str:
    """Name of the layer whose input is the flattened image.

    Args:
        model: the network that the server shipped.
        shape: of an image, (C, H, W).

    Raises:
        UserError: the network does not start with a fully connected layer that has a bias.
    """
    layers = [name for name, layer in model.network.named_modules() if isinstance(layer, nn.Linear)]
    first = next(iter(model.parameters)).rpartition(".")[0]
    if first not in layers or f"{first}.bias" not in model.parameters:
        raise UserError(f"the network starts with no fully connected layer with a bias, which {_NEEDED}")
    if len(model.parameters[f"{first}.weight"][0]) != torch.Size(shape).numel():
        raise UserError(f"the network's first layer does not see the whole image, which {_NEEDED}")
    return first


def revealed_input(weight: Tensor, bias: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood input x of a linear layer from its gradients δ xᵀ and δ in white noise.

    The pair [δ xᵀ, δ] has rank one, so its likeliest value is the leading pair of singular vectors: every row is
    weighted by its δ, where the ratio of a single row would divide by noise.

    Args:
        weight: noisy gradient, (rows, inputs).
        bias: noisy gradient, (rows,).
        std: standard deviation of the noise on both, on the scale of the gradients.

    Returns:
        The input, (inputs,), and the standard deviation of its noise, a scalar: std / ‖δ‖, infinite
        where δ is hidden in the noise.

    Source: Phong et al. 2018 (IEEE TIFS 13(5), section 3) for the ratio of a single row; Eckart & Young (1936) for all
    rows under noise.
    """
    # On the host: Apple's GPUs have no float64.
    rows, own = torch.cat([weight, bias[:, None]], dim=1).cpu().double(), bias.cpu().double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # there are few rows and many inputs
    leading = vectors[:, -1]
    leading_weight = leading @ own
    if values[-1] <= 0 or leading_weight.abs() <= 2 * std:  # its sign may be due to noise
        return torch.zeros_like(weight[0]), weight.new_tensor(torch.inf)
    return (leading @ rows[:, :-1] / leading_weight).to(weight), (std / leading_weight.abs()).to(weight)


def revealed_image(model: FunctionalModel, observed: Update, std: float, parametrization: Parametrization) -> Tensor:
    """Dummies (1, C, H, W) of the image that the first layer's gradient reveals: the coefficients' posterior mean.

    The noise is white in the layer's inputs, so the posterior mean is a Wiener filter of the coefficients.

    Args:
        model: the network that the server shipped.
        observed: the update of a single image.
        std: standard deviation of its noise.
        parametrization: of the search, not in pixels.

    Raises:
        UserError: see `first_linear`; or the layer's input is not the image, up to a scale and a shift of each pixel.
    """
    shape = tuple(parametrization.mean.shape)
    name = first_linear(model, (shape[0], shape[1], shape[2]))
    # The layer's input is the image up to a scale and a shift of every pixel: two images determine both.
    probes = torch.stack([torch.zeros(shape), torch.ones(shape), torch.rand(shape)]).to(parametrization.mean)
    with torch.no_grad(), inputs_of(model.network, [name]) as inputs:
        model.network(probes)
    zero, one, other = inputs[name].view(3, *shape)
    scale = one - zero
    if not torch.allclose(zero + scale * probes[2], other, atol=1e-4):
        raise UserError(f"the network's first layer does not see the image itself, which {_NEEDED}")
    found, noise = revealed_input(observed[f"{name}.weight"], observed[f"{name}.bias"], std)
    image = (found.view(shape) - zero) / scale
    noise = (noise / scale).square().mean()
    coefficients = parametrization.transform.analyse(image)
    whitened: Tensor = coefficients * parametrization.std / (parametrization.std.square() + noise)
    return whitened[None]
