# SPDX-License-Identifier: Apache-2.0
"""Networks that can be differentiated per sample and twice: attention by plain products, clear errors otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.errors import UserError

# Parts of PyTorch's message about an operation whose backward pass cannot be differentiated, or not in `torch.func`.
_ONCE = ("is not implemented", "double backward", "differentiate twice", "functorch transforms")


@contextmanager
def math_attention() -> Iterator[None]:
    """Compute attention by plain products, which can be differentiated per sample and twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def twice_differentiable(network: str) -> Iterator[None]:
    """Compute attention by plain products; turn PyTorch's error about missing second derivatives into a `UserError`.

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
