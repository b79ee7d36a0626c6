# SPDX-License-Identifier: Apache-2.0
"""The options of `recon verify`."""

from dataclasses import dataclass, field
from typing import Any

from lightning_recon.verification.claims import Claims


@dataclass(frozen=True)
class VerifyOptions:
    """What is verified, and what is claimed of it.

    Args:
        client: the client, as `module:attribute`: a function of model and batch, or a class whose instances are called
            like one, and which is created with the index of the client and `client_arguments`.
        claims: what is claimed of it.
        client_arguments: further arguments of the class.
        network: "convnet", a torchvision or timm name, or the path of a class that takes `num_classes`.
        num_classes: number of classes of the network.
        image_size: width and height of the images, in pixels.
        channels: of the images: 3 for RGB, 1 for grey.
        releases: how many releases of noise alone are asked for, at least 4; of canaries twice as many.
        restart: whether the client is started again in a new process, to see whether its noise repeats.
        false_alarms: limit on the probability that any claim of a correct client is refuted.
        seed: of the network's weights, and of which canaries are in a batch. The client draws its own noise.
    """

    client: str
    claims: Claims
    client_arguments: dict[str, Any] = field(default_factory=dict)
    network: str = "convnet"
    num_classes: int = 10
    image_size: int = 32
    channels: int = 3
    releases: int = 32
    restart: bool = True
    false_alarms: float = 0.001
    seed: int = 0
