# SPDX-License-Identifier: Apache-2.0
"""A structure with a layer of its own, whose weight gradient is a thumbnail of the image; used by test_server_layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics
from lightning_recon.structure import Decoded, ServerLayer, Structure
from lightning_recon.structure.head_weights import class_code


class ThumbnailLayer(ServerLayer):
    """One row over the image at a quarter of its size; a frozen copy cancels its output."""

    def __init__(self, payload: ServerPayload) -> None:
        super().__init__(payload)
        self.register_buffer("code", payload.tensors["code"])
        self.weight = nn.Parameter(torch.zeros(1, int(payload.settings["inputs"])))

    def forward(self, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """The thumbnail and a constant 1, times the row minus its copy: 0, but not its gradient."""
        inputs = F.pad(F.avg_pool2d(images, 4).flatten(1), (0, 1), value=1.0)
        return 1e4 * (inputs @ (self.weight - self.weight.detach()).T) * self.code


class Thumbnails(Structure):  # for clients with one image
    name = "thumbnails"

    def statistics(self, task: Task) -> PublicStatistics:
        return public_statistics(*task.image_shape[1:], subjects=False)

    def payload(self, task: Task) -> ServerPayload:
        inputs = 3 * (task.image_shape[1] // 4) * (task.image_shape[2] // 4) + 1
        return ServerPayload({"layer": ThumbnailLayer.path(), "inputs": inputs}, {"code": class_code(task.num_classes)})

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        row = update.gradient["structure.weight"][0]
        small = (row[:-1] / row[-1]).view(1, 3, task.image_shape[1] // 4, -1)
        images = F.interpolate(small, task.image_shape[1:], mode="bilinear").clamp(0, 1)
        return Decoded(images, unresolved=0, rows={"structure.weight": None})
