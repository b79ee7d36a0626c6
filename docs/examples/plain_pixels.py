# SPDX-License-Identifier: Apache-2.0
"""Your own attack: a single unit that every image activates, so the row of a single image is that image.

It returns no posterior, so there is nothing to refine: `--trainer.max_steps 0`.

    recon fit -c quickstart.yaml --model.structure plain_pixels.PlainPixels --data.batch_size 1 --trainer.max_steps 0
"""

import math

import torch

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics, public_statistics
from lightning_recon.structure import Decoded, Structure
from lightning_recon.structure.head_weights import class_code


class PlainPixels(Structure):
    """Reads one image of each client, without any prior: it scores what the noise law says."""

    name = "plain_pixels"  # of the attack, in results.json

    def statistics(self, task: Task) -> PublicStatistics:
        """Only for the mean image, with which a victim that was not reconstructed is scored."""
        return public_statistics(*task.image_shape[1:], subjects=False)

    def payload(self, task: Task) -> ServerPayload:
        """One unit without limits, its frozen copy, and a constant input beside the pixels: the pilot."""
        pixels = math.prod(task.image_shape)
        tensors = {"mean": torch.zeros(task.image_shape), "colour": torch.eye(3), "index": torch.arange(pixels)}
        tensors |= {"gain": torch.ones(pixels), "constants": torch.tensor([0.1 * math.sqrt(pixels)])}
        tensors |= {"directions": torch.zeros(1, pixels), "unit_direction": torch.zeros(1, dtype=torch.int64)}
        tensors |= {"lower": torch.tensor([-torch.inf]), "upper": torch.tensor([torch.inf])}
        return ServerPayload(
            settings={"pixels": True, "cancel": True, "strength": 1e4, "target_scale": 1.0},
            tensors=tensors | {"code": class_code(task.num_classes)},
        )

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """The row is ± image/S and ± pilot/S: divide."""
        row = update.gradient["structure.weight"][0]
        image = (row[:-1] / row[-1] * payload.tensors["constants"][0]).view(1, *task.image_shape).clamp(0, 1)
        return Decoded(image, unresolved=0, rows={"structure.weight": None})
