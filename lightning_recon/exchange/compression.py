# SPDX-License-Identifier: Apache-2.0
"""The lossy compression of a client's update, as it is announced."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from lightning_recon.files import schema

Method = Literal["float16", "bfloat16", "int8", "qsgd", "top_k", "random_k", "sign"]


@dataclass(frozen=True)
class Compression:
    """What an update goes through besides clipping and noise.

    Args:
        method: "float16", "bfloat16": rounded to this format. "int8": rounded to the nearest multiple of a scale for
            each tensor, its largest magnitude / 127. "qsgd": rounded at random, without bias, to a multiple of a scale
            for each tensor, its largest magnitude / `levels` (Alistarh et al. 2017, arXiv 1610.02132). "top_k": the
            entries of largest magnitude, zero elsewhere. "random_k": entries drawn at random, zero elsewhere; they are
            not scaled up (Stich et al. 2018, arXiv 1809.07599). "sign": the sign of each entry (zero counts as
            positive) times the mean magnitude of its tensor.
        share: for "top_k" and "random_k": share of all entries that are kept, in (0, 1].
        per_tensor: for "top_k" and "random_k": this share of each tensor instead of the whole update.
        levels: for "qsgd": number of levels of the magnitude above 0.
        before_noise: under granularity "update", compress the clipped update, clip it once more, and then add the
            noise: to all entries, under "random_k" to the kept ones. By default noise is added first, so that
            compression is post-processing.
    """

    # Records are validated against these types when they are read from disk.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    method: Method
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    per_tensor: bool = False
    levels: Annotated[int, Field(ge=1, le=65_536)] = 127
    before_noise: bool = False

    @property
    def in_words(self) -> str:
        """The compression in a few words."""
        name = self.method.replace("_", "-")
        if self.method in ("top_k", "random_k"):
            name += f" {100 * self.share:g} %{' of each tensor' if self.per_tensor else ''}"
        elif self.method == "qsgd":
            name += f" with {self.levels} levels"
        return f"{name} {'before' if self.before_noise else 'after'} the noise"
