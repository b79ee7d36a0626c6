# SPDX-License-Identifier: Apache-2.0
"""The client that is verified: any callable that trains a model on a batch and returns what it would release."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lightning_recon.errors import UserError

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) and labels (B,)

# Trains the given model, which is a copy of its own, by one step or by its local training, and returns the privatized
# gradients or the state dict, by parameter name. What it sends beside them may have names of its own.
ClientUnderTest = Callable[[nn.Module, Batch], Mapping[str, Tensor]]


def client_named(path: str, index: int, arguments: Mapping[str, Any]) -> ClientUnderTest:
    """The client that a config names.

    Args:
        path: `module:attribute`: a function of model and batch, or a class whose instances are called like one. A class
            is created with the index of the client, and with the arguments.
        index: index of the client, from 0.
        arguments: keyword arguments of the class; none of a function.

    Raises:
        UserError: there is no such module or attribute, or it cannot be created so.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(f"--verify.client is {path!r}: give module:attribute, such as my_client:train_step")
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--verify.client {path} cannot be imported ({error}): run recon in the folder that holds the module, or "
            "put that folder on PYTHONPATH"
        ) from error
    if inspect.isclass(found):
        create: Callable[..., Any] = found
        try:
            found = create(index, **arguments)
        except TypeError as error:
            raise UserError(
                f"--verify.client {path} cannot be created ({error}): it is given the index of the client and "
                "--verify.client_arguments"
            ) from error
    elif arguments:
        raise UserError(f"--verify.client {path} is a function, and --verify.client_arguments are those of a class")
    if not callable(found):
        raise UserError(f"--verify.client {path} is no function of model and batch, and no class of such objects")
    client: ClientUnderTest = found
    return client
