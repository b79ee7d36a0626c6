# SPDX-License-Identifier: Apache-2.0
"""A network that starts fully connected gives its picture away: weight gradient = bias gradient times the picture.

Such a layer's gradient has rank one, δ xᵀ beside δ: no search is needed, and what noise leaves of x is known.
"""

import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.functional_model import FunctionalModel, inputs_of
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.errors import UserError
from lightning_recon.priors.dct import analyse

_ADVICE = "set --model.init to mean, noise or patches"


def first_linear(model: FunctionalModel, shape: tuple[int, int, int]) -> str:
    """Name of the layer that sees the flattened picture.

    Args:
        model: the network that the server shipped.
        shape: of a picture, (3, H, W).

    Raises:
        UserError: the network does not start with a fully connected layer that has a bias.
    """
    layers = [name for name, layer in model.network.named_modules() if isinstance(layer, nn.Linear)]
    first = next(iter(model.parameters)).rpartition(".")[0]
    if first not in layers or f"{first}.bias" not in model.parameters:
        raise UserError(
            f"the network starts with no fully connected layer with a bias, which start revealed needs: {_ADVICE}"
        )
    if len(model.parameters[f"{first}.weight"][0]) != torch.Size(shape).numel():
        raise UserError(
            f"the network's first layer does not see the whole picture, which start revealed needs: {_ADVICE}"
        )
    return first


def revealed_input(weight: Tensor, bias: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """The one input x that a linear layer's gradients, δ xᵀ and δ, and white noise explain best.

    The pair [δ xᵀ, δ] has rank one, so its likeliest value is the leading pair of singular vectors: every row counts by
    its gradient weight, where a ratio of single rows would divide by noise.

    Args:
        weight: noisy gradient, (rows, inputs).
        bias: noisy gradient, (rows,).
        std: standard deviation of the noise on both, on the scale of the gradients.

    Returns:
        The input, (inputs,), and the standard deviation of its noise, a scalar: std / ‖δ‖, infinite
        where δ is not seen.

    Source: Phong et al. 2018 (IEEE TIFS 13(5), section 3) for the ratio of a single row; Eckart & Young (1936) for all
    rows under noise.
    """
    # On the host: Apple's GPUs have no float64.
    rows, own = torch.cat([weight, bias[:, None]], dim=1).cpu().double(), bias.cpu().double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # rows are few, inputs many
    leading = vectors[:, -1]
    leading_weight = leading @ own
    if values[-1] <= 0 or leading_weight.abs() <= 2 * std:  # the weight itself may be noise: the sign would be a guess
        return torch.zeros_like(weight[0]), weight.new_tensor(torch.inf)
    return (leading @ rows[:, :-1] / leading_weight).to(weight), (std / leading_weight.abs()).to(weight)


def revealed_picture(model: FunctionalModel, seen: Update, std: float, coordinates: Parametrization) -> Tensor:
    """Dummies (1, 3, H, W) of the picture that the first layer's gradient reveals: the coefficients' posterior mean.

    The noise is white in the layer's inputs; in coefficients of known variance Wiener's filter removes what can be
    removed.

    Args:
        model: the network that the server shipped.
        seen: the update of a single picture.
        std: standard deviation of its noise.
        coordinates: of the search, not in pixels.

    Raises:
        UserError: see `first_linear`; or the layer sees something else than the standardised picture.
    """
    shape = tuple(coordinates.mean.shape)
    name = first_linear(model, (shape[0], shape[1], shape[2]))
    # What the layer sees of a picture, as a scale and a shift of every pixel: two pictures tell both.
    probes = torch.stack([torch.zeros(shape), torch.ones(shape), torch.rand(shape)]).to(coordinates.mean)
    with torch.no_grad(), inputs_of(model.network, [name]) as inputs:
        model.network(probes)
    zero, one, other = inputs[name].view(3, *shape)
    scale = one - zero
    if not torch.allclose(zero + scale * probes[2], other, atol=1e-4):
        raise UserError(
            f"the network's first layer does not see the picture itself, which start revealed needs: {_ADVICE}"
        )
    found, noise = revealed_input(seen[f"{name}.weight"], seen[f"{name}.bias"], std)
    picture = (found.view(shape) - zero) / scale
    noise = (noise / scale).square().mean()
    coefficients = analyse(picture, coordinates.mean, coordinates.colour)
    whitened: Tensor = coefficients * coordinates.std / (coordinates.std.square() + noise)
    return whitened[None]
