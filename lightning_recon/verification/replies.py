# SPDX-License-Identifier: Apache-2.0
"""Ask a client for one release, and sort what it sent."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.interrupts import interrupt_in
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import Batch, ClientUnderTest
from lightning_recon.verification.probes import LAYERS, ProbeModel, layer_name

_WRAPPERS = ("_module.", "module.")  # prefixes that wrappers add to parameter names


@dataclass(frozen=True)
class Reply:
    """One release, sorted.

    Args:
        update: of the model's floating-point parameters, in the unit of `Claims.update_factor`.
        beside: everything else that was sent: buffers, integers, metrics, as they were sent.
    """

    update: dict[str, Tensor]
    beside: dict[str, Tensor]


def reply_of(client: ClientUnderTest, probe: tuple[ProbeModel, Batch], claims: Claims) -> Reply:
    """One release of a client, which is given a copy of model and batch.

    Raises:
        UserError: the client failed, or see `sorted_reply`.
    """
    model, (images, labels) = probe
    try:
        reply = client(copy.deepcopy(model), (images.clone(), labels.clone()))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a client of the user's may raise anything, and may end its program
        if interrupt_in(error) is not None:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"the client failed on a probe ({type(error).__name__}: {reason}): see its own log") from error
    return sorted_reply(reply, model, claims)


def sorted_reply(reply: Mapping[str, Tensor], model: ProbeModel, claims: Claims) -> Reply:
    """Sort what a client sent into the update of the parameters and all the rest.

    Raises:
        UserError: the reply is no mapping of tensors, lacks the server's layers, or a parameter has another shape, NaN
            or infinity.
    """
    known = dict(model.named_parameters())
    wanted = "its state dict" if claims.released == "state_dict" else "the gradients"
    if not isinstance(reply, Mapping):
        raise UserError(f"the client returned {type(reply).__name__}: return {wanted}, a dict by parameter name")
    update: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for wrapped, value in reply.items():
        name = _own_name(str(wrapped))
        tensor = _tensor_of(value, name)
        if name not in known:
            beside[name] = tensor
            continue
        before = known[name].detach().cpu()
        if tensor.shape != before.shape:
            raise UserError(f"the client sent {name} as {tuple(tensor.shape)}, but it was given {tuple(before.shape)}")
        change = tensor.double() - before.double() if claims.released == "state_dict" else tensor.double()
        if not bool(change.isfinite().all()):
            raise UserError(f"the client sent NaN or infinity in {name}: verify a client whose step succeeds")
        update[name] = (claims.update_factor * change).float()
    for name in map(layer_name, range(LAYERS)):
        if name not in update:
            raise UserError(
                f"the client's release lacks {name}: it must train the model that it is given, and return {wanted} by "
                "parameter name"
            )
    return Reply(update, beside)


def _tensor_of(value: object, name: str) -> Tensor:
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        what = "None, a parameter without a gradient" if value is None else type(value).__name__
        raise UserError(f"the client sent {name} as {what}: return a dict of tensors") from error


def _own_name(wrapped: str) -> str:
    for prefix in _WRAPPERS:
        wrapped = wrapped.removeprefix(prefix)
    return wrapped
