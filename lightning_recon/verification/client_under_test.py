# SPDX-License-Identifier: Apache-2.0
"""The client that is verified: any callable that trains a model on a batch and returns what it would release."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.interrupts import interrupt_in

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
    flag = "--verify.client"
    found = named(path, flag, "my_client:train_step")
    if inspect.isclass(found):
        create: Callable[..., Any] = found
        try:
            found = create(index, **arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a class of the user's may raise anything, and may end its program
            if interrupt_in(error) is not None:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(
                f"{flag} {path} cannot be created ({reason}): it is given the index of the client and {flag}_arguments"
            ) from error
    elif is_flower_app(found):
        raise UserError(
            f"{flag} {path} is a Flower app: give lightning_recon.verification.flower_app:FlowerApp, and in "
            f"{flag}_arguments the app_of that returns your app"
        )
    elif arguments:
        raise UserError(f"{flag} {path} is a function, and {flag}_arguments are those of a class")
    if not callable(found):
        raise UserError(f"{flag} {path} is no function of model and batch, and no class of such objects")
    client: ClientUnderTest = found
    return client


def named(path: str, flag: str, example: str) -> Any:  # noqa: ANN401 - whatever the module holds
    """The object that `module:attribute` names.

    Args:
        path: the name.
        flag: the option that holds it, for messages.
        example: a name, for messages.

    Raises:
        UserError: the name has another form, the module cannot be imported, or it has no such attribute.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(f"{flag} is {path!r}: give module:attribute, such as {example}")
    try:
        found = import_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything, and may end its program
        if interrupt_in(error) is not None:
            raise
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        advice = (
            "run recon in the folder that holds the module, or put that folder on PYTHONPATH"
            if missing
            else f"see that python -c 'import {module}' succeeds"
        )
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{flag} {path} cannot be imported ({reason}): {advice}") from error
    if not hasattr(found, attribute):
        near = get_close_matches(attribute, dir(found), 1)
        advice = f"did you mean {module}:{near[0]}?" if near else "give the name of one that it defines"
        raise UserError(f"{flag} {path}: module {module} has no attribute {attribute}: {advice}")
    return getattr(found, attribute)


def is_flower_app(value: object) -> bool:
    """Whether an object is a `ClientApp`, found without an import of Flower."""
    return any(kind.__name__ == "ClientApp" and kind.__module__.startswith("flwr.") for kind in type(value).__mro__)
