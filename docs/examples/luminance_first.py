# SPDX-License-Identifier: Apache-2.0
"""Your own encoder: more of the clipping budget for luminance, less for colour.

`WaterFilling` decodes by the tensors of its payload, so an encoder of your own only changes these tensors.

    recon fit --config quickstart.yaml --model.structure luminance_first.LuminanceFirst
"""

from dataclasses import replace

import torch

from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure import WaterFilling


class LuminanceFirst(WaterFilling):
    """Water-filling whose luminance coefficients get more than their share of the power."""

    def __init__(self, emphasis: float = 4.0, subjects: bool = False) -> None:
        """Set the share.

        Args:
            emphasis: By how much the power of luminance grows before all powers are scaled to the budget, above 0.
            subjects: Whether the server expects clients to cut the subject out on black.
        """
        super().__init__(subjects=subjects)
        self.emphasis = emphasis

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "luminance_first"

    def payload(self, task: Task) -> ServerPayload:
        """The structure with other gains; separation and decoding read them from the payload, and need no change."""
        shipped = super().payload(task)
        index, gain, directions = (shipped.tensors[name] for name in ("index", "gain", "directions"))
        power = gain**2 * self.statistics(task).variance.flatten()[index]
        # The three colour planes lie behind one another, luminance first.
        wanted = torch.where(index < task.image_shape[1] * task.image_shape[2], self.emphasis * power, power)
        ratio = (wanted / power * (power.sum() / wanted.sum())).sqrt()
        changed = {"gain": gain * ratio, "directions": directions / ratio}
        return replace(shipped, tensors={**shipped.tensors, **changed})
