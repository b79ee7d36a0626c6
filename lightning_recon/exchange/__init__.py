# SPDX-License-Identifier: Apache-2.0
"""The messages between server and client: payloads, updates, and the announced parameters of the training.

The server sends a `ServerPayload`, the client answers with a privatized `ClientUpdate`. Both are plain data, stored as
safetensors and JSON, so that reading them never executes code. A `RecordedClient` answers from a stored exchange, so
that a run can be replayed after the images were deleted.
"""

from lightning_recon.exchange.batch_sampling import BatchSampling, Sampling
from lightning_recon.exchange.client import Client, RecordedClient
from lightning_recon.exchange.compression import Compression
from lightning_recon.exchange.earlier_tasks import completed, current_noise_share
from lightning_recon.exchange.lazy_tensors import LazyTensors, shapes_of
from lightning_recon.exchange.local_training import LocalTraining, training_by
from lightning_recon.exchange.payload import ServerPayload, payload_name
from lightning_recon.exchange.quantization import Quantization
from lightning_recon.exchange.rounds import at_first_clip, factor_in_mean, task_of_one_round, task_of_sums
from lightning_recon.exchange.task import NoiseShare, Task, check_task, summed_noise
from lightning_recon.exchange.update import ClientUpdate, update_name

__all__ = [
    "BatchSampling",
    "Client",
    "ClientUpdate",
    "Compression",
    "LazyTensors",
    "LocalTraining",
    "NoiseShare",
    "Quantization",
    "RecordedClient",
    "Sampling",
    "ServerPayload",
    "Task",
    "at_first_clip",
    "check_task",
    "completed",
    "current_noise_share",
    "factor_in_mean",
    "payload_name",
    "shapes_of",
    "summed_noise",
    "task_of_one_round",
    "task_of_sums",
    "training_by",
    "update_name",
]
