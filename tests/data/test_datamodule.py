# SPDX-License-Identifier: Apache-2.0
"""Batches are reproducible and handed to the client; the attack itself gets no image."""

import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_recon.attack import Attack, Reconstruction
from lightning_recon.data import ClientBatch, ClientDataModule, GrabCutMasks, NoMasks, SamMasks
from lightning_recon.data import datamodule as module_under_test
from lightning_recon.data.sources import DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ClientUpdate, ServerPayload, Task
from lightning_recon.image_format import ImageFormat, rgb
from lightning_recon.priors.image_statistics import PublicStatistics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.14
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_RECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIGHTNING_RECON_DATA", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of three classes, each of one colour."""
    for index in range(12):
        path = tmp_path / "data" / f"class{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * index, 255 - 20 * index, 7)).save(path)
    return tmp_path / "data"


def batches(**arguments: object) -> list[ClientBatch]:
    data = ClientDataModule(**{"image_size": 16, "masks": NoMasks()} | arguments)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data.client_batches


def test_a_batch_is_what_it_says() -> None:
    (batch,) = batches(image_size=48, batch_size=4, masks=GrabCutMasks(work_size=96))
    assert batch.images.shape == batch.photographs.shape == (4, 3, 48, 48)
    assert batch.images.dtype == batch.photographs.dtype == torch.float32
    assert batch.masks.shape == (4, 1, 48, 48)
    assert batch.masks.dtype == torch.bool
    assert batch.labels.shape == (4,)
    assert batch.labels.dtype == torch.int64
    assert batch.photographs.min() >= 0
    assert 0.9 < batch.photographs.max() <= 1
    assert torch.equal(batch.images, batch.photographs * batch.masks)
    assert 0 < batch.masks.float().mean() < 1


def test_names_and_labels_belong_to_the_images(folder: Path) -> None:
    for batch in batches(root=str(folder), batch_size=5, clients=2):
        for name, label, photograph in zip(batch.names, batch.labels, batch.photographs, strict=True):
            index = int(Path(name).stem)
            assert label == index % 3
            assert torch.allclose(photograph[0], torch.tensor(20 * index / 255))


def test_a_client_has_the_same_batch_however_many_are_attacked(folder: Path) -> None:
    many = batches(root=str(folder), batch_size=3, clients=4)
    for clients in (1, 2, 3):
        for one, other in zip(batches(root=str(folder), batch_size=3, clients=clients), many, strict=False):
            assert one.names == other.names
            assert torch.equal(one.photographs, other.photographs)
            assert torch.equal(one.labels, other.labels)
    assert len({name for batch in many for name in batch.names}) == 12


def test_the_seed_chooses(folder: Path) -> None:
    chosen = [tuple(batches(root=str(folder), batch_size=6, seed=seed)[0].names) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_damaged_files_are_named_once_and_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = batches(root=str(folder), batch_size=12)[0].names
    path = folder / whole[0]
    path.write_bytes(path.read_bytes()[:60])
    (folder / "class0" / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        data = ClientDataModule(root=str(folder), image_size=16, batch_size=11, masks=NoMasks())
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
    assert data.client_batches[0].names == whole[1:]
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if whole[0] in message]) == 1
    assert len([message for message in messages if "notes.txt" in message]) == 1
    assert len(messages) == 2
    with pytest.raises(UserError, match=r"11 readable images; 12 are needed.*batch_size") as raised:
        batches(root=str(folder), batch_size=12)
    assert "--data.batch_size" in raised.value.for_command_line


def test_where_the_data_come_from(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batches(batch_size=1)[0].names[0].endswith(".jpg")  # the bundled samples
    assert batches(root=str(folder), batch_size=1)[0].names[0].endswith(".png")  # a given root wins
    with pytest.raises(UserError, match=r"root.*LIGHTNING_RECON_DATA") as raised:
        batches(source="imagenet", batch_size=1)
    assert "--data.root" in raised.value.for_command_line
    monkeypatch.setenv("LIGHTNING_RECON_DATA", str(folder))
    assert batches(source="imagenet", batch_size=1)[0].names[0].endswith(".png")
    assert batches(batch_size=1)[0].names[0].endswith(".jpg")
    with pytest.raises(UserError, match="nowhere does not exist"):
        batches(root=str(tmp_path / "nowhere"), batch_size=1)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"clients": 0}, {"image_size": 4}, {"num_classes": 0}, {"num_workers": -1}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} is"):
        ClientDataModule(**wrong)  # type: ignore[arg-type]


def test_labels_that_do_not_fit_the_network_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"labels up to 2, but num_classes is 2") as raised:
        batches(root=str(folder), batch_size=12, num_classes=2)
    assert "--data.num_classes is 2" in raised.value.for_command_line
    assert len(batches(root=str(folder), batch_size=12, num_classes=3)) == 1


def test_masks_are_found_in_prepare_data_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ClientDataModule(root=str(folder), image_size=16, batch_size=4, masks=GrabCutMasks(seed=5))
    with pytest.raises(UserError, match="prepare_data"):
        data.setup()
    data.prepare_data()
    monkeypatch.setattr(GrabCutMasks, "_grabcut", None)  # another search fails
    data.prepare_data()
    data.setup()
    assert len(data.client_batches) == 1


# --- with a Trainer ---


class RememberingClient:
    """Remembers the batches that it was given."""

    batches: list[ClientBatch]
    protocol: DataProtocol | None = None

    @property
    def task(self) -> Task:
        raise NotImplementedError

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        raise NotImplementedError

    def bind(self, batches: list[ClientBatch], protocol: DataProtocol | None = None) -> None:
        self.batches, self.protocol = batches, protocol


class RecordingAttack(Attack):
    """Asks nothing of its client, and records the training data that it gets."""

    name = "recording"

    def __init__(self) -> None:
        self.remembering = RememberingClient()
        super().__init__(self.remembering, draws=1, record=False, update=None)
        self.dummy = nn.Parameter(torch.zeros(()))
        self.received: list[Tensor] = []

    @property
    def statistics(self) -> PublicStatistics:
        raise NotImplementedError

    def make_payload(self, client: Client) -> ServerPayload:
        raise NotImplementedError

    def announce(self, folder: Path) -> None: ...

    def observe(self, client: Client, folder: Path | None) -> None: ...

    def allocate(self) -> None: ...

    def reconstructions(self) -> list[Reconstruction]:
        return []

    def setup(self, stage: str) -> None: ...

    def on_fit_start(self) -> None: ...

    def step_loader(self) -> DataLoader[int]:
        return DataLoader(range(3))  # type: ignore[arg-type]

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.received.append(batch)
        return self.dummy**2

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.received.append(batch)

    test_step = validation_step

    def predict_step(self, batch: Tensor, index: int) -> Tensor:
        self.received.append(batch)
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Target(LightningModule):
    """A network that is trained itself; records what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.received: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": []}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.received["train"].append(batch)
        return nn.functional.cross_entropy(self.layer(batch[0].mean((2, 3))), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.received["val"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )


def test_the_attack_is_handed_steps_and_its_client_the_images(trainer: Trainer, folder: Path) -> None:
    attack = RecordingAttack()
    data = ClientDataModule(root=str(folder), image_size=16, batch_size=4, clients=2, masks=NoMasks())
    trainer.fit(attack, data)
    assert [batch.tolist() for batch in attack.received] == [[0], [1], [2], [0]]  # three steps, one validation
    attack.received.clear()
    trainer.test(attack, data, verbose=False)
    trainer.predict(attack, data)
    assert [batch.tolist() for batch in attack.received] == [[0], [0]]
    assert attack.remembering.batches is data.client_batches
    assert [batch.images.shape for batch in attack.remembering.batches] == [(4, 3, 16, 16)] * 2
    assert attack.remembering.protocol == DataProtocol(4, subjects=False)


def test_the_protocol_announces_what_is_nominal_and_clients_have_what_they_have(trainer: Trainer, folder: Path) -> None:
    attack = RecordingAttack()
    data = ClientDataModule(str(folder), image_size=16, batch_size=2, clients=2, actual_batch_sizes=[3, 1])
    trainer.test(attack, data, verbose=False)
    assert attack.remembering.protocol == DataProtocol(2, subjects=True)
    assert [len(batch.images) for batch in data.client_batches] == [3, 1]
    alike = ClientDataModule(str(folder), "folder", image_size=16, batch_size=4, masks=NoMasks())
    alike.setup()
    together = torch.cat([batch.photographs for batch in data.client_batches])
    assert torch.equal(together, alike.client_batches[0].photographs)
    with pytest.raises(UserError, match="actual_batch_sizes has 2 numbers for 3"):
        ClientDataModule(str(folder), clients=3, actual_batch_sizes=[3, 1])
    with pytest.raises(UserError, match="actual_batch_sizes"):
        ClientDataModule(str(folder), actual_batch_sizes=[0])


def test_clients_hold_more_images_than_a_batch(trainer: Trainer, folder: Path) -> None:
    attack = RecordingAttack()
    data = ClientDataModule(str(folder), image_size=16, batch_size=1, clients=2, local_images=2)
    trainer.test(attack, data, verbose=False)
    assert attack.remembering.protocol == DataProtocol(1, subjects=True, local_images=2)
    assert [len(batch.images) for batch in data.client_batches] == [2, 2]
    with pytest.raises(UserError, match="both set what clients hold"):
        ClientDataModule(str(folder), local_images=2, actual_batch_sizes=[3])


def test_a_target_is_trained_on_images_that_no_attacked_client_holds(trainer: Trainer, folder: Path) -> None:
    target = Target()
    data = ClientDataModule(root=str(folder), image_size=16, batch_size=2, masks=GrabCutMasks())
    trainer.fit(target, data)
    reds = {
        key: {round(float(image.max() if image[1].max() == 0 else image[0].max()), 4) for image in images}
        for key, images in {
            "train": [image for batch, _ in target.received["train"] for image in batch],
            "val": [image for batch, _ in target.received["val"] for image in batch],
            "client": list(data.client_batches[0].images),
        }.items()
    }
    assert {key: len(values) for key, values in reds.items()} == {"train": 9, "val": 1, "client": 2}
    assert len(set.union(*reds.values())) == 12
    images, labels = target.received["train"][0]
    assert images.shape == (2, 3, 16, 16)
    assert labels.dtype == torch.int64


def test_a_damaged_training_image_is_replaced_by_the_next(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ClientDataModule(root=str(folder), image_size=16, batch_size=2, masks=NoMasks())
    rest = data._rest()
    before = rest[1][0]
    (folder / rest.source.names[rest.order[0]]).write_bytes(b"gone")
    assert torch.equal(rest[0][0], before)
    assert len(list(rest.readable())) == len(rest) - 1
    assert len(caplog.records) == 1


class Drawing(Target):
    """A network that chooses the images of each step, and asks for their size."""

    def fit_to_images(self, image_format: ImageFormat) -> None:
        self.image_format = image_format

    def sampler(self, count: int, batch_size: int) -> list[list[int]]:
        self.asked = count, batch_size
        return [[0, 3], [], [1]]

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.received["train"].append(batch)
        return self.layer.weight.sum()


def test_a_target_may_draw_its_own_batches(trainer: Trainer, folder: Path) -> None:
    target, data = Drawing(), ClientDataModule(root=str(folder), image_size=16, batch_size=2, masks=NoMasks())
    rest = data._rest()
    (folder / rest.source.names[rest.order[3]]).write_bytes(b"gone")
    expected = rest[0][0], rest[1][0]
    trainer.fit(target, data)
    drawn = [images for images, _ in target.received["train"]]
    assert target.image_format == rgb(16)
    assert target.asked == (9, 2)
    assert [len(images) for images in drawn] == [1, 0, 1]  # the damaged one takes part in no step, nor does another
    assert torch.equal(drawn[0][0], expected[0])
    assert drawn[1].shape == (0, 3, 16, 16)
    assert torch.equal(drawn[2][0], expected[1])


def test_too_few_images_to_train_on(folder: Path, trainer: Trainer) -> None:
    data = ClientDataModule(root=str(folder), image_size=16, batch_size=12, masks=NoMasks())
    with pytest.raises(UserError, match="too few images to train on"):
        trainer.fit(Target(), data)


def test_download_is_asked_of_torchvision_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opened(source: str, root: Path, num_classes: int | None, download: bool = False) -> None:
        asked.append((source, root, download))
        raise UserError("no network")

    monkeypatch.setattr(module_under_test, "open_source", opened)
    data = ClientDataModule(root=str(tmp_path), source="cifar100", download=True)
    with pytest.raises(UserError, match="no network"):
        data.prepare_data()
    assert asked == [("cifar100", tmp_path, True)]


# --- from the command line ---


def built(*arguments: str) -> ClientDataModule:
    cli = LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={"logger": False, "accelerator": "cpu", "enable_progress_bar": False},
        args=["--model", f"{BoringModel.__module__}.BoringModel", *arguments],
    )
    assert isinstance(cli.datamodule, ClientDataModule)
    return cli.datamodule


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_masks_and_numbers_are_set_by_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what 4.53 renamed
    config = tmp_path / "config.yaml"
    config.write_text(
        "data:\n  class_path: lightning_recon.data.ClientDataModule\n  init_args:\n    source: imagenet\n"
        "    masks:\n      class_path: lightning_recon.data.SamMasks\n      init_args:\n        model_type: vit_b\n"
    )
    shipped = built("--config", str(config), "--data.masks.checkpoint", "sam.pth")
    assert isinstance(shipped.masks, SamMasks)
    assert (shipped.masks.checkpoint, shipped.masks.model_type) == ("sam.pth", "vit_b")
    grabcut = "lightning_recon.data.GrabCutMasks"
    changed = built("--config", str(config), "--data.root", "DIR", "--data.masks", grabcut, "--data.masks.inset", "0.1")
    assert isinstance(changed.masks, GrabCutMasks)
    assert (changed.masks.inset, changed.root, changed.source) == (0.1, Path("DIR"), "imagenet")
    bare = built("--config", str(config), "--data.masks", "lightning_recon.data.NoMasks", "--data.batch_size", "4")
    assert isinstance(bare.masks, NoMasks)
    assert bare.batch_size == 4
