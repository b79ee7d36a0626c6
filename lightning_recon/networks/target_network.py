# SPDX-License-Identifier: Apache-2.0
"""Build the network that clients train, and adapt it to the size of their images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from lightning_recon.errors import UserError
from lightning_recon.networks.batch_norm import without_batch_norm
from lightning_recon.networks.construction import build_network, is_class_path, takes_size
from lightning_recon.networks.input_layer import input_channels
from lightning_recon.networks.normalization import ChannelStatistics, Normalization
from lightning_recon.networks.setup_check import fit_to_images
from lightning_recon.networks.weights_file import channels_of_weights, load_weights


@dataclass(frozen=True)
class TargetNetwork:
    """How to build the target network.

    Args:
        name: "convnet", a torchvision or timm name, or the path of a class that takes `num_classes`.
        num_classes: number of classes.
        weights: file of a state dict or checkpoint to load; None: untrained.
        seed: seed of the untrained weights.
        normalization: how the network normalizes its input images.
        per_sample: whether each sample is clipped on its own, so that batch normalization must be replaced.
    """

    name: str
    num_classes: int
    weights: str | Path | None
    seed: int
    normalization: Normalization
    per_sample: bool

    def build(self, image_size: tuple[int, int] | None, channels: int = 3) -> nn.Module:
        """Build the network with its weights.

        Args:
            image_size: height and width of the images; None: the network's default.
            channels: of the images.

        Raises:
            UserError: there is no such network, or the weights do not fit it.
        """
        network = self._untrained(image_size, channels)
        if self.weights is not None:
            load_weights(network, self.weights)
        return network

    def build_before_data(self) -> tuple[nn.Module, UserError | None]:
        """Build the network for its default image size, before the size of the images is known.

        Returns:
            The network; and why the weights do not fit it, if they may fit the same network at another image size.
            It is then untrained, and `fit` builds it again.

        Raises:
            UserError: there is no such network, or the weights do not fit it at any image size.
        """
        statistics = self.normalization
        network = self._untrained(None, len(statistics.mean) if isinstance(statistics, ChannelStatistics) else 3)
        if self.weights is not None:
            channels = channels_of_weights(self.weights, network)
            if channels != input_channels(network) and not is_class_path(self.name):
                network = self._untrained(None, channels)
            try:
                load_weights(network, self.weights)
            except UserError as error:
                if not takes_size(self.name) or not Path(self.weights).is_file():
                    raise
                return network, error
        return network, None

    def fit(
        self,
        network: nn.Module,
        misfit: UserError | None,
        image_shape: tuple[int, int, int],
        count: int,
        maps: bool | None = False,
    ) -> nn.Module:
        """Return the network if it can be trained on images of this shape, or one that is built for their size.

        Args:
            network: what `build_before_data` returned first.
            misfit: what it returned second.
            image_shape: channels, height and width of the images.
            count: how many images go through the network at a time, or more.
            maps: whether it returns outputs for each pixel; None: either.

        Raises:
            UserError: no such network can be trained on them.
        """
        channels = image_shape[0]
        if misfit is not None:
            try:
                network = self.build((image_shape[1], image_shape[2]), channels)
            except UserError:
                raise misfit from None
        elif channels != (3 if is_class_path(self.name) else input_channels(network)):
            # A class decides itself how many channels it takes; its normalization depends on them.
            network = self.build(None, channels)
        rebuild = partial(self.build, channels=channels) if takes_size(self.name) else None
        return fit_to_images(network, rebuild, self.name, image_shape, self.num_classes, count, self.seed, maps)

    def _untrained(self, image_size: tuple[int, int] | None, channels: int) -> nn.Module:
        network = build_network(self.name, self.num_classes, None, self.seed, self.normalization, image_size, channels)
        return without_batch_norm(network) if self.per_sample else network
