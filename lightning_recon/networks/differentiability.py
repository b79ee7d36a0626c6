# SPDX-License-Identifier: Apache-2.0
"""Networks that can be differentiated per sample and twice: attention by plain products, clear errors otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.errors import UserError

# What torch says of an operation whose backward pass cannot be differentiated, or not within `torch.func`.
_ONCE = ("is not implemented", "double backward", "differentiate twice", "functorch transforms")


@contextmanager
def math_attention() -> Iterator[None]:
    """Within it attention is computed by plain products, which can be differentiated per sample and twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def twice_differentiable(network: str) -> Iterator[None]:
    """Within it attention is computed by plain products, and a network without second derivatives is said to be one.

    Args:
        network: its name, for the message.

    Raises:
        UserError: something in the network cannot be differentiated twice.
    """
    try:
        with math_attention():
            yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _ONCE):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"network {network!r} cannot be differentiated twice, as inverting a gradient needs ({reason}): choose "
            "another network, or an attack with a structure"
        ) from error
