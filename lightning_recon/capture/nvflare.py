# SPDX-License-Identifier: Apache-2.0
"""Audit an NVFlare job: a filter that captures what leaves its clients, behind the job's own privacy filters.

Filters of `task_result_filters` are called in the order of the job, so that `CaptureFilter` comes last. It reads what
is announced from files, because a job's configuration holds plain values only. What the privacy filters release is said
in `capture.nvflare_filters`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.capture.image_shape import image_shape
from lightning_recon.capture.nvflare_filters import SvtRelease, svt_release
from lightning_recon.capture.recording import keep_network
from lightning_recon.capture.served_model import served_model
from lightning_recon.capture.tensor_check import NETWORK, STRUCTURE
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, Declared, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import Compression, LocalTraining, ServerPayload, Task, payload_name, update_name
from lightning_recon.losses import LossName
from lightning_recon.structure.base import Structure
from lightning_recon.structure.layer import build_layer

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.filter import FilterChainType, FilterContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.app_common.app_constant import AppConstants
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy
except ImportError as error:
    raise UserError("auditing an NVFlare job needs nvflare: pip install 'lightning_recon[nvflare]'") from error

ANNOUNCED = "announced"  # folder beside the captured updates, with what the filter has to know
_BUDGET = "svt_privacy_budget"  # in which SVTPrivacy says what it has spent
_ROUNDS_OF_DESIGN = 10  # of a structure and of the norm that follows from it; two or three are enough


@dataclass(frozen=True)
class NVFlareAudit:
    """An NVFlare job under audit: what its server and its clients need.

    Args:
        network: the job's own model: images (B, C, H, W) in [0, 1] to logits (B, classes).
        structure: what the server adds to it; None: an honest server, which sends `network` alone.
        protection: the privacy filter of the job; None: there is none.
        image_size: side of the images, or their height and width, in pixels.
        num_classes: number of classes of the network.
        batch_size: images in an update: all images that the client trains on in a round.
        clients: number of clients; each update is captured in its own file.
        rounds: number of updates of each client.
        name: name of the network in the captured files; for an honest server the name by which the attack builds it.
        local: the clients' local training, see `exchange.training_by`; `update` must be "delta".
        channels: number of channels of the images.
        loss: name of the loss by which clients train, see `losses`.
    """

    network: nn.Module
    structure: Structure | None
    protection: SVTPrivacy | PercentilePrivacy | None
    image_size: int | Sequence[int]
    num_classes: int
    batch_size: int
    clients: int = 1
    rounds: int = 1
    name: str = "nvflare"
    local: LocalTraining = LocalTraining(update="delta")  # noqa: RUF009 - frozen
    channels: int = 3
    loss: LossName = "cross_entropy"

    @property
    def steps(self) -> int:
        """Number of local steps, which the client has to report as NUM_STEPS_CURRENT_ROUND."""
        return self.local.steps(self.batch_size)

    @cached_property
    def payload(self) -> ServerPayload:
        """What the server adds to the network."""
        if self.structure is None:
            return ServerPayload()
        payload = self.structure.payload(self.task)
        if isinstance(self.protection, PercentilePrivacy):
            self._check_zeros(payload, self.protection.percentile / 100)
        return payload

    @cached_property
    def task(self) -> Task:
        """What the server knows of the training and of the filter.

        The release of `SVTPrivacy` is described by what is closest to it: Gaussian noise of the same standard
        deviation, on entries that are drawn at random, of an update whose clipping norm is that of its limited entries.
        Epsilon that is accounted for this task is therefore not that of `SVTPrivacy`, whose own is `Declared`.

        Raises:
            UserError: the filter, the structure and the training do not fit each other.
        """
        if self.local.update != "delta":
            raise UserError(
                f'NVFlare sends weights, so the update is "delta", not {self.local.update!r}: announce that'
            )
        plain = Task(
            image_shape=image_shape(self.channels, self.image_size),
            num_classes=self.num_classes,
            batch_size=self.batch_size,
            clients=self.clients,
            network=self.name,
            granularity="update",
            per_layer=False,
            max_grad_norm=None,
            noise_multiplier=0.0,
            rounds=self.rounds,
            parameter_tensors=len(list(self.network.parameters())),
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            local=self.local,
            normalization="none",
            loss=self.loss,
        )
        if isinstance(self.protection, SVTPrivacy) and self.structure is not None:
            return self._task_of_svt(plain, self.structure, self.protection.gamma * self.steps)
        return plain

    @property
    def release(self) -> SvtRelease | None:
        """What `SVTPrivacy` releases of an update; None for another filter."""
        return _release_of(self.protection, self._entries(self.payload), self.steps)

    def model(self) -> nn.Module:
        """The model that the server sends, see `served_model`; of an honest server the network itself."""
        return self.network if self.structure is None else served_model(self.network, self.payload)

    def announce(self, folder: str | Path) -> None:
        """Write what `CaptureFilter` has to know; call it before the job runs.

        Args:
            folder: of the captured updates.
        """
        self.task.save(Path(folder) / ANNOUNCED)
        self.payload.save(Path(folder) / ANNOUNCED, payload_name(0))

    def capture(self, folder: str | Path) -> "CaptureFilter":
        """The filter that captures updates; list it after the privacy filter.

        Args:
            folder: of the captured updates, an absolute path, where `announce` has written.
        """
        filters = [] if self.protection is None else [type(self.protection).__name__]
        limit = self.protection.gamma * self.steps if isinstance(self.protection, PercentilePrivacy) else None
        return CaptureFilter(str(folder), filters[0] if filters else None, self.steps, limit)

    def _check_zeros(self, payload: ServerPayload, removed: float) -> None:
        """Refuse a percentile above the share of values that are zero whatever the images are."""
        layer = build_layer(payload)
        units, inputs = layer.get_parameter("weight").shape
        excited = min(units, self.batch_size * len(payload.tensors.get("directions", ()))) or units
        silent = layer.detach_logits or layer.target_scale == 0
        own = 0 if silent else sum(parameter.numel() for parameter in self.network.parameters())
        zeros = 1 - (excited * inputs + own) / self._entries(payload)
        if removed > zeros:
            silence = "" if silent else ", or let it silence the network (WaterFilling: detach_logits)"
            raise UserError(
                f"PercentilePrivacy removes values of the structure: its percentile is {100 * removed:g}, and "
                f"{100 * zeros:.3g} % of the values are zero: give the structure more units{silence}"
            )

    def _entries(self, payload: ServerPayload) -> int:
        """Number of values in an update."""
        own = sum(parameter.numel() for parameter in self.network.parameters())
        if self.structure is None:
            return own
        return own + sum(parameter.numel() for parameter in build_layer(payload).parameters())

    def _task_of_svt(self, plain: Task, structure: Structure, limit: float) -> Task:
        """The task for `SVTPrivacy`, whose clipping norm follows from the structure that is designed for it."""
        entries, excited = plain.parameters, float(plain.parameters)
        for _ in range(_ROUNDS_OF_DESIGN):
            found = _release_of(self.protection, entries, self.steps)
            assert found is not None
            norm = limit * math.sqrt(excited)
            task = replace(
                plain,
                max_grad_norm=norm,
                noise_multiplier=found.noise_std / norm,
                compression=Compression("random_k", share=found.share, before_noise=True),
            )
            payload = structure.payload(task)
            if not payload.settings.get("signs"):
                raise UserError(
                    f"SVTPrivacy limits every value, for which {type(structure).__name__} has no code: give "
                    "WaterFilling or Digital"
                )
            inputs = build_layer(payload).get_parameter("weight").shape[1]
            used = inputs - int((payload.tensors["constants"] == 0).sum())
            earlier, excited = excited, float(self.batch_size * len(payload.tensors["directions"]) * used)
            entries = self._entries(payload)
            if excited == earlier:
                return task
        return task


def _release_of(protection: object, entries: int, steps: int) -> SvtRelease | None:
    if not isinstance(protection, SVTPrivacy):
        return None
    return svt_release(
        entries,
        protection.fraction,
        protection.epsilon,
        protection.noise_var,
        protection.gamma,
        protection.replace,
        protection.epsilon_query,
        protection.epsilon_release,
        steps,
    )


class CaptureFilter(DXOFilter):  # type: ignore[misc]
    """A filter of `task_result_filters` that writes every update to a file and forwards it unchanged.

    In `task_data_filters` it writes the weights that an honest server sends; the attack needs them.
    """

    def __init__(
        self,
        folder: str,
        after: str | None = None,
        steps: int | None = None,
        limit: float | None = None,
        client: int | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            folder: of the captured updates, an absolute path, where `NVFlareAudit.announce` has written.
            after: name of the filter that must have been called before; None: none.
            steps: local steps that the client has to report; None: any.
            limit: largest magnitude that a filter without noise lets through, which the structure must keep below;
                None: not checked.
            client: index of the client, from 0; None: from its name, site-1 being the first.
        """
        super().__init__([DataKind.WEIGHTS, DataKind.WEIGHT_DIFF], None)
        self.folder, self.after, self.steps, self.limit, self.client = folder, after, steps, limit, client

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """Capture the weights that are sent to a client, or the update that it sends.

        Args:
            dxo: arrays by name.
            shareable: the message.
            fl_ctx: context of the call.

        Returns:
            None: nothing was changed.

        Raises:
            UserError: the message holds weights instead of their change, or was not filtered as announced.
        """
        folder = Path(self.folder)
        tensors = {name: torch.as_tensor(value) for name, value in dxo.data.items()}
        structure = ServerPayload.load(folder / ANNOUNCED, payload_name(0))
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            if not structure.settings:
                keep_network(folder, tensors)
            return None
        save_captured(*self._captured(folder, tensors, structure, dxo, shareable, fl_ctx))
        return None

    def _captured(
        self,
        folder: Path,
        tensors: dict[str, Tensor],
        payload: ServerPayload,
        dxo: DXO,
        shareable: Shareable,
        fl_ctx: FLContext,
    ) -> tuple[Path, CapturedUpdate]:
        if dxo.data_kind != DataKind.WEIGHT_DIFF:
            raise UserError(
                "the client sends its weights, and privacy filters are made for their change: set "
                "params_transfer_type=TransferType.DIFF in the job"
            )
        if self.after is not None and self.after not in (dxo.get_filter_history() or []):
            raise UserError(f"the update has not been through {self.after} yet: list CaptureFilter after it")
        reported = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 1)
        if self.steps is not None and reported != self.steps:
            raise UserError(
                f"the client reports {reported} steps, by which the filters scale gamma, and {self.steps} are announced"
            )
        if self.limit is not None:
            self._check_limited(tensors)
        task = Task.load(folder / ANNOUNCED)
        place = self._client(fl_ctx), int(shareable.get_header(AppConstants.CURRENT_ROUND, 0))
        prefix = "" if payload.settings else NETWORK
        budget: dict[str, Any] | None = dxo.get_meta_prop(_BUDGET)
        captured = CapturedUpdate(
            task=task,
            tensors={prefix + name: tensor for name, tensor in tensors.items() if not _is_buffer(name)},
            convention="delta",
            payload=payload.digest(),
            client=place[0],
            round=place[1],
            source=f"nvflare {version('nvflare')}, {', '.join(dxo.get_filter_history() or ['no filter'])}",
            declared=None if budget is None else Declared(epsilon=float(budget["epsilon_total"]), delta=0.0),
        )
        return folder / f"{update_name(place[0], 0, place[1])}{ENDING}", captured

    def _check_limited(self, tensors: dict[str, Tensor]) -> None:
        """Refuse an update in which the filter has limited values of the structure."""
        values = torch.cat(
            [one.flatten() for name, one in tensors.items() if name.startswith(STRUCTURE)] or [torch.zeros(0)]
        )
        limited = int((values.abs() >= (self.limit or 0.0) * (1 - 1e-6)).sum())
        if limited:
            raise UserError(
                f"{limited} values of the structure were limited by gamma, {self.limit:g}: give the structure a "
                "strength of gamma or less"
            )

    def _client(self, fl_ctx: FLContext) -> int:
        if self.client is not None:
            return self.client
        found = re.search(r"(\d+)$", str(fl_ctx.get_identity_name()))
        if found is None:
            raise UserError(f"client {fl_ctx.get_identity_name()} has no number: give CaptureFilter client=")
        return int(found[1]) - 1


def _is_buffer(name: str) -> bool:
    """Whether an array of a state dict is no parameter, but a running statistic of batch normalization."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
