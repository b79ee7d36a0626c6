# SPDX-License-Identifier: Apache-2.0
"""Audit a Flower app under SecAgg+: run its own workflow as the server, and capture the sums that the server gets.

`flwr.server.workflow.SecAggPlusWorkflow` and `flwr.client.mod.secaggplus_mod` (read in the source of 1.41 and 1.42) add
up weights, not their changes: each client multiplies its arrays by its number of examples / `max_weight`, limits every
number to `clipping_range`, rounds it at random to one of `quantization_range` steps, and masks the integers; the server
gets their sum modulo `modulus_range`, and with it the sum of these factors, as an array of its own. They are legacy
interfaces of Flower: client apps have a `client_fn`, and servers a `LegacyContext`.

The server learns beside the sum which clients are in it, and each one's number of examples and metrics, in the clear.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_recon.capture.flower import FlowerAudit, bound_on_norm, source_of
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import update_name

try:
    from flwr.app import Context
    from flwr.common import FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.client_proxy import ClientProxy
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow
    from flwr.serverapp import Grid
except ImportError as error:
    raise UserError("auditing a Flower app needs flwr: pip install 'lightning_recon[flower]'") from error


def serve_sums(audit: FlowerAudit, folder: str | Path, grid: Grid, context: Context) -> None:
    """Run all rounds of the audit as a malicious server behind SecAgg+: the body of a server app's `main`.

    Args:
        audit: the app under audit, with its `secure_aggregation`.
        folder: gets one captured update for each round: the sum of the clients that did not drop out.
        grid: of the server app.
        context: of the server app.

    Raises:
        UserError: the audit has no workflow of secure aggregation.
    """
    if audit.secure_aggregation is None:
        raise UserError(
            "this audit has no secure aggregation: give FlowerAudit secure_aggregation=SecAggPlusWorkflow(...)"
        )
    strategy = CapturedSums(audit, Path(folder))
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=audit.rounds), strategy=strategy)
    DefaultWorkflow(fit_workflow=audit.secure_aggregation)(grid, legacy)


class CapturedSums(FedAvg):
    """A strategy that sends the same arrays in every round, and writes what the workflow hands it to files."""

    def __init__(self, audit: FlowerAudit, folder: Path) -> None:
        """Store the arguments.

        Args:
            audit: the app under audit.
            folder: folder for one file per round.
        """
        self.audit, self.folder = audit, folder
        self.received = {name: torch.as_tensor(array.numpy()) for name, array in audit.arrays().items()}
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=audit.clients,
            min_available_clients=audit.clients,
            initial_parameters=ndarrays_to_parameters([tensor.numpy() for tensor in self.received.values()]),
        )

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Any]]:
        """Capture the sum, and keep the arrays as they are.

        Args:
            server_round: number of the round, from 1.
            results: of each client that is in the sum; their parameters are the clients' weighted mean.
            failures: of the others.

        Raises:
            UserError: the clients have other numbers of examples than announced, by which SecAgg+ weighs them.
        """
        counts, announced = sorted({one.num_examples for _, one in results}), self.audit.batch_size
        if results and counts != [announced]:
            raise UserError(
                f"clients report {', '.join(map(str, counts))} examples, by which SecAgg+ weighs their updates: audit "
                f"clients of as many as FlowerAudit.batch_size, {announced}, each"
            )
        if results:
            arrays = parameters_to_ndarrays(results[0][1].parameters)
            mean = {name: torch.as_tensor(array) for name, array in zip(self.received, arrays, strict=True)}
            path = self.folder / f"{update_name(0, 0, server_round - 1)}{ENDING}"
            save_captured(path, captured_sum(self.audit, self.received, mean, len(results), server_round - 1))
        return None, {}


def captured_sum(
    audit: FlowerAudit, received: Mapping[str, Tensor], mean: Mapping[str, Tensor], contributors: int, round: int
) -> CapturedUpdate:
    """The sum of clients' updates, from the mean of their weights.

    Args:
        audit: the app under audit.
        received: arrays that the server sent, by name.
        mean: mean of the clients' arrays.
        contributors: how many clients are in it.
        round: index of the round, from 0.

    Raises:
        UserError: the sum is larger than its clients' clips allow.
    """
    delta = {name: (contributors * (mean[name].double() - received[name].double())).float() for name in audit.names}
    norm = math.hypot(*(float(tensor.double().norm()) for tensor in delta.values()))
    most = bound_on_norm(audit, sum(tensor.numel() for tensor in delta.values()), contributors)
    if norm > most:
        raise UserError(
            f"the sum has norm {norm:.4g}, but clipping and noise of {contributors} clients allow {most:.4g}: list the "
            "LocalDpMod after secaggplus_mod, mods=[secaggplus_mod, protection], or raise the workflow's clipping_range"
        )
    return CapturedUpdate(
        task=audit.task,
        tensors=delta,
        convention="delta",
        payload=audit.payload.digest(),
        round=round,
        source=f"{source_of(audit)}, SecAgg+",
        declared=audit.protected.declared,
        contributors=contributors if contributors < audit.clients else None,
    )
