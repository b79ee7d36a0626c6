# SPDX-License-Identifier: Apache-2.0
"""A Flower client app with all its mods as the client under test."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.verification.client_under_test import Batch

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common.recorddict_compat import fitins_to_recorddict, recorddict_to_fitres
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    raise UserError("verifying a Flower app needs flwr: pip install 'lightning_recon[flower]'") from error

AppOf = Callable[[nn.Module, Batch], ClientApp]


class FlowerApp:
    """A Flower client app, which is sent a message as its server sends it, and whose reply is read.

    Args:
        app_of: makes the app of the model that the server sends and of the client's batch, where your app builds its
            network and loads its data; with all its mods.
        client: index of the client, its partition-id.
        legacy: whether the app is made of a `client_fn`, a `NumPyClient` for example, and so reads a `FitIns`.
    """

    def __init__(self, app_of: AppOf, client: int = 0, legacy: bool = False) -> None:
        """Store the arguments; every call is a round of its own."""
        self.app_of, self.client, self.legacy, self.rounds = app_of, client, legacy, 0

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All arrays of the reply by their names, and its metrics as `metrics.NAME`."""
        self.rounds += 1
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        with _as_flower_sets_up_a_process():
            app = self.app_of(model, batch)
            place: dict[str, bool | float | int | str] = {"partition-id": self.client}
            context = Context(run_id=1, node_id=self.client + 1, node_config=place, state=RecordDict(), run_config={})
            content = self._legacy_content(state) if self.legacy else self._content(state)
            reply = app(Message(content=content, message_type="train", dst_node_id=self.client + 1), context)
        if reply.has_error():
            raise UserError(f"the Flower app replied with an error ({reply.error.reason}): see its log")
        if self.legacy:
            result = recorddict_to_fitres(reply.content, keep_input=False)
            arrays = map(torch.as_tensor, parameters_to_ndarrays(result.parameters))
            found = dict(zip(state, arrays, strict=True))
            sent: dict[str, Any] = dict(result.metrics) | {"num-examples": result.num_examples}
        else:
            records = list(reply.content.array_records.values())
            found = {name: tensor for record in records for name, tensor in record.to_torch_state_dict().items()}
            sent = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        return found | {f"metrics.{name}": torch.as_tensor(value) for name, value in sent.items() if _is_number(value)}

    def _content(self, state: dict[str, Tensor]) -> RecordDict:
        config = ConfigRecord({"server-round": self.rounds})
        return RecordDict({"arrays": ArrayRecord(state), "config": config})

    def _legacy_content(self, state: dict[str, Tensor]) -> RecordDict:
        parameters = ndarrays_to_parameters([tensor.numpy() for tensor in state.values()])
        return fitins_to_recorddict(FitIns(parameters, {"server_round": self.rounds}), keep_input=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | list)


@contextmanager
def _as_flower_sets_up_a_process() -> Iterator[None]:
    """Messages can be made only by a process that Flower has given a task; and its mods log every call."""
    log = logging.getLogger("flwr")
    before = log.level
    try:
        TaskIdentity.task_id  # noqa: B018 - raises where nothing was set
    except RuntimeError:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
