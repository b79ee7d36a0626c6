# SPDX-License-Identifier: Apache-2.0
"""Data sets of torchvision by name and others by class path, and their distribution over clients by labels."""

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from lightning_recon.cli import main
from lightning_recon.data import DatasetClients, NoMasks
from lightning_recon.data.dataset_items import as_image
from lightning_recon.data.dirichlet import dirichlet_partition
from lightning_recon.errors import UserError

OWN = f"{__name__}.Own"
MEDICAL = f"{__name__}.LikeMedmnist"


class Own(Dataset[Any]):
    """A data set as users have them: tensors in [0, 1], and labels that only its items tell."""

    def __init__(self, count: int = 40, classes: int = 4) -> None:
        self.images, self.classes = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0)), classes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        """Image, label, and something else."""
        return self.images[index], index % self.classes, "more"


class LikeMedmnist(Dataset[Any]):
    """Grey images, and labels as arrays of one number, as medmnist has them."""

    def __init__(self, split: str, download: bool = False, root: str = "") -> None:
        self.imgs = np.arange(30 * 64, dtype=np.uint8).reshape(30, 8, 8)
        self.labels = np.arange(30).reshape(30, 1) % 3
        self.split = split

    def __len__(self) -> int:
        """Number of images."""
        return len(self.imgs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label."""
        return self.imgs[index], self.labels[index]


def write_mnist(root: Path) -> np.ndarray:
    """MNIST's training files with twenty images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 20, 28, 28) + images.tobytes())
        labels = np.arange(20, dtype=np.uint8) % 10
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 20) + labels.tobytes())
    return images


def opened(dataset: str, **options: Any) -> DatasetClients:  # noqa: ANN401 - of the class
    data = DatasetClients(dataset, masks=NoMasks(), image_size=12, batch_size=4, **options)
    data.prepare_data()
    data.setup()
    return data


def test_a_data_set_of_torchvision_by_name(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    data = DatasetClients("mnist", root=str(tmp_path), masks=NoMasks(), image_size=28, batch_size=20)
    data.setup()
    (batch,) = data.client_batches
    found = {int(name): image for name, image in zip(batch.names, batch.images, strict=True)}
    for index, image in enumerate(images):
        expected = torch.from_numpy(image).float().expand(3, 28, 28) / 255
        assert torch.equal(found[index], expected)
    assert sorted(batch.labels.tolist()) == sorted(list(range(10)) * 2)


def test_options_of_the_class() -> None:
    options = {"size": 50, "image_size": [3, 12, 12], "num_classes": 3}
    data = opened("FakeData", options=options, clients=2)
    assert [len(batch.labels) for batch in data.client_batches] == [4, 4]
    assert max(int(batch.labels.max()) for batch in data.client_batches) < 3


def test_a_data_set_by_class_path() -> None:
    (batch,) = opened(OWN).client_batches
    source = Own()
    for name, image, label in zip(batch.names, batch.images, batch.labels, strict=True):
        assert float((image - source.images[int(name)]).abs().max()) <= 0.5 / 255 + 1e-6
        assert int(label) == int(name) % 4
    (medical,) = opened(MEDICAL, options={"split": "train"}).client_batches
    assert [int(name) % 3 for name in medical.names] == medical.labels.tolist()


def test_it_is_attacked(tmp_path: Path) -> None:
    data = ["--data", "lightning_recon.data.DatasetClients", "--data.dataset", OWN, "--data.masks", "NoMasks"]
    sizes = ["--data.image_size", "12", "--data.batch_size", "2", "--data.alpha", "0.5", "--data.partitions", "2"]
    client = ["--model.client.network", "convnet", "--model.client.num_classes", "4"]
    run = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1", "--results.show", "false"]
    main(["fit", "--config", "quickstart.yaml", *data, *sizes, *client, *run, "--trainer.accelerator", "cpu"])
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["victims"] == 2


def test_clients_hold_their_own_part() -> None:
    options: dict[str, Any] = {"options": {"count": 200}, "clients": 3, "partitions": 5, "seed": 1}
    skewed, again = (opened(OWN, alpha=0.1, **options) for _ in range(2))
    parts = dirichlet_partition([index % 4 for index in range(200)], 5, 0.1, seed=1)
    for batch, same, part in zip(skewed.client_batches, again.client_batches, parts, strict=False):
        assert batch.names == [str(index) for index in part[:4]] == same.names
    even = opened(OWN, alpha=1000.0, **options)
    spread = [len(set(batch.labels.tolist())) for batch in even.client_batches]
    assert sum(spread) > sum(len(set(batch.labels.tolist())) for batch in skewed.client_batches)


def test_partitions_cover_the_data_and_follow_alpha() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 2000).tolist()

    def largest_share(alpha: float) -> float:
        parts = dirichlet_partition(labels, 8, alpha, seed=3)
        assert sorted(index for part in parts for index in part) == list(range(2000))
        assert min(map(len, parts)) >= 10
        counts = [Counter(labels[index] for index in part) for part in parts]
        return float(np.mean([max(one.values()) / sum(one.values()) for one in counts]))

    assert largest_share(0.1) > 0.4 > 0.15 > largest_share(1000.0)


def test_self_balancing_limits_the_largest_part() -> None:
    labels = (np.arange(2000) % 10).tolist()
    sizes = [
        max(map(len, dirichlet_partition(labels, 8, 0.1, self_balancing=balanced, seed=2)))
        for balanced in (False, True)
    ]
    assert sizes[1] < sizes[0]
    assert sizes[1] <= 2000 / 8 + 200


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ("MNISTT", {}, "did you mean MNIST"),
        ("package.Missing", {}, "cannot be imported"),
        ("medmnist.NoSuchMNIST", {}, r"pip install 'lightning_recon\[medmnist\]'"),
        ("torch.nn.Linear", {}, "is no map-style data set"),
        ("MNIST", {}, "add download true"),
        (OWN, {"options": {"cuont": 3}}, "unexpected keyword argument 'cuont'"),
        (OWN, {"alpha": 0.01, "partitions": 4, "min_partition_size": 15}, "raise alpha, or lower"),
        (OWN, {"alpha": 1.0, "clients": 3, "partitions": 2}, r"more than partitions"),
        (OWN, {"alpha": 0.0}, "alpha is 0"),
        (OWN, {"alpha": 1.0, "partitions": 41}, "cannot be distributed over 41 clients"),
        (OWN, {"alpha": 100.0, "local_images": 20}, "a client holds"),
    ],
)
def test_mistakes(dataset: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        opened(dataset, **{"root": str(tmp_path), "partitions": 3, "min_partition_size": 1, **options})


def test_what_is_no_image() -> None:
    with pytest.raises(TypeError, match="not an image"):
        as_image("picture.png")


class Normalized(Own):
    """Images as a transform with Normalize returns them."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        """Image, label, and something else."""
        return self.images[index] * 4 - 2, 0, "more"


class Torn(Own):
    """One image cannot be read."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        """Image, label, and something else."""
        if index == torch.randperm(40, generator=torch.Generator().manual_seed(1))[0]:
            raise OSError("damaged")
        return super().__getitem__(index)


def test_normalized_images_are_refused_after_a_few() -> None:
    with pytest.raises(UserError, match=r"none of the first 20 images can be used: .*leave normalization out"):
        opened(f"{__name__}.Normalized")


def test_labels_that_cannot_be_read_are_named_in_one_line() -> None:
    with pytest.raises(UserError, match=r"by which alpha distributes the images, cannot be read: damaged"):
        opened(f"{__name__}.Torn", alpha=1.0, partitions=2)


def test_clients_of_later_waves_have_the_images_that_they_have_without_waves() -> None:
    options: dict[str, Any] = {"alpha": 5.0, "partitions": 4, "min_partition_size": 4}
    whole = opened(OWN, clients=3, **options)
    first = opened(OWN, clients=2, clients_at_once=2, **options)
    second = opened(OWN, clients=1, clients_at_once=2, first_client=2, first_image=first.next_image, **options)
    assert [one.names for one in whole.client_batches] == [
        one.names for data in (first, second) for one in data.client_batches
    ]
    source, _, rest = whole._select()
    assert sorted(rest) != rest
    assert len(rest) == len(source) - 12
