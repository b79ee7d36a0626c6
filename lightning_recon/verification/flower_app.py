# SPDX-License-Identifier: Apache-2.0
"""A Flower client app with all its mods as the client under test."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.verification.client_under_test import Batch, is_flower_app, named

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common.recorddict_compat import fitins_to_recorddict, recorddict_to_fitres
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    raise UserError("verifying a Flower app needs flwr: pip install 'lightning_recon[flower]'") from error

AppOf = Callable[[nn.Module, Batch], ClientApp]
Scalar = bool | float | int | str
_PARTITIONS = 2  # of the data; two clients are compared


class FlowerApp:
    """A Flower client app, which is sent a message as its server sends it, and whose reply is read.

    Args:
        client: index of the client, its partition-id.
        app_of: a function of the model that the server sends and of the client's batch that returns the app, which
            has to train this model on this batch, with all its mods; or its name, `module:attribute`.
        legacy: whether the app is made of a `client_fn`, a `NumPyClient` for example, and so reads a `FitIns`.
        run_config: what the app reads in `context.run_config`: `[tool.flwr.app.config]` of its pyproject.toml.
        train_config: what the server sends beside the arrays, as the `train_config` of its strategy, `lr` for example.

    Raises:
        UserError: `app_of` names no function.
    """

    def __init__(
        self,
        client: int,
        app_of: AppOf | str,
        legacy: bool = False,
        run_config: Mapping[str, Scalar] | None = None,
        train_config: Mapping[str, Scalar] | None = None,
    ) -> None:
        """Find `app_of`; every call is a round of its own, in a context that is kept from round to round."""
        self.app_of, self.client, self.legacy, self.rounds = _app_of(app_of), client, legacy, 0
        self.train_config = dict(train_config or {})
        place: dict[str, Scalar] = {"partition-id": client, "num-partitions": _PARTITIONS}
        self.context = Context(1, client + 1, place, RecordDict(), dict(run_config or {}))

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All arrays of the reply by their names, and its metrics as `metrics.NAME`.

        Raises:
            UserError: `app_of` returned no app, or the app replied with an error.
        """
        self.rounds += 1
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        with _as_flower_sets_up_a_process():
            app = self.app_of(model, batch)
            if not isinstance(app, ClientApp):
                raise UserError(f"app_of returned {type(app).__name__}: return the flwr.clientapp.ClientApp")
            content = self._legacy_content(state) if self.legacy else self._content(state)
            message = Message(content=content, message_type="train", dst_node_id=self.client + 1)
            reply = app(message, self.context)
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
        config = ConfigRecord({**self.train_config, "server-round": self.rounds})
        return RecordDict({"arrays": ArrayRecord(state), "config": config})

    def _legacy_content(self, state: dict[str, Tensor]) -> RecordDict:
        parameters = ndarrays_to_parameters([tensor.numpy() for tensor in state.values()])
        return fitins_to_recorddict(
            FitIns(parameters, {**self.train_config, "server_round": self.rounds}), keep_input=True
        )


def _app_of(given: AppOf | str) -> AppOf:
    flag = "--verify.client_arguments.app_of"
    found: AppOf = named(given, flag, "my_app:app_of") if isinstance(given, str) else given
    if is_flower_app(found):
        raise UserError(
            f"{flag} {given} is a Flower app, whose network and data cannot be replaced from outside: give a function "
            "of model and batch that replaces them and returns the app"
        )
    if not callable(found):
        raise UserError(f"{flag} {given} is no function of model and batch that returns a Flower app")
    return found


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
