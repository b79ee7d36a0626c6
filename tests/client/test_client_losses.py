# SPDX-License-Identifier: Apache-2.0
"""Clients train by the loss that was announced, on targets that fit it, and say so where they do not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.gradients import clipped_sum, mean_gradient
from lightning_recon.client.local_options import LocalOptions
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.losses import LossName, as_targets, dice, loss_named
from lightning_recon.networks.construction import build_network
from lightning_recon.privacy.clipping import Clip
from lightning_recon.structure import WaterFilling

Batch = Callable[[int], ClientBatch]
SIDE = 16  # of the images of `a_batch`
LOSSES: tuple[LossName, ...] = ("dice", "binary_cross_entropy")


def masks_of(batch: ClientBatch) -> ClientBatch:
    return replace(batch, labels=(batch.images[:, :1] > 0.6).float())


def client_of(loss: LossName, outputs: int, batch: ClientBatch, network: str, privacy: Privacy) -> VictimClient:
    client = VictimClient(network, outputs, privacy=privacy, noise_seed=0, loss=loss)
    client.bind([batch])
    return client


# --- the functions ---


def test_the_losses_are_pytorchs() -> None:
    outputs, targets = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    found = loss_named("binary_cross_entropy")(outputs, targets)
    torch.testing.assert_close(found, F.binary_cross_entropy(outputs.sigmoid(), targets))
    torch.testing.assert_close(loss_named("mean_squared_error")(outputs, targets), (outputs - targets).square().mean())
    labels = torch.tensor([0, 2, 1, 1])
    assert torch.equal(loss_named("cross_entropy")(outputs, labels), F.cross_entropy(outputs, labels))


def test_dice_of_a_perfect_and_of_an_opposite_mask() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    sure = 200 * (mask - 0.5)
    assert float(dice(sure, mask)) == pytest.approx(0, abs=1e-6)
    assert float(dice(-sure, mask)) == pytest.approx(1, abs=1e-6)
    half = torch.zeros_like(mask)  # p = 1/2: 1 - 2 * 4 / (8 + 8)
    assert float(dice(half, mask)) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(UserError, match="Dice loss is of masks"):
        dice(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "dice", "dice_bce", "mean_squared_error", "cross_entropy"])
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(loss: LossName) -> None:
    outputs = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    targets = (outputs > 0).double() if loss != "cross_entropy" else torch.randint(2, (3, 4, 4))
    each = [loss_named(loss)(one[None], target[None]) for one, target in zip(outputs, targets, strict=True)]
    torch.testing.assert_close(loss_named(loss)(outputs, targets), torch.stack(each).mean())


@pytest.mark.parametrize("loss", ["dice", "dice_bce", "binary_cross_entropy"])
def test_samples_differentiated_at_once_have_the_gradients_of_one_by_one(loss: LossName, a_batch: Batch) -> None:
    network, batch = build_network("pixel_convnet", 1), masks_of(a_batch(0))
    sums = [clipped_sum(network, loss_named(loss), batch.images, batch.labels, Clip(1.0), chunk)[0] for chunk in (1, 3)]
    for name, tensor in sums[0].items():
        torch.testing.assert_close(sums[1][name], tensor, rtol=1e-4, atol=1e-6)


# --- the client ---


def test_an_image_with_an_empty_mask_arrives_where_it_is_clipped_alone(a_batch: Batch) -> None:
    images, whole = a_batch(0).images[:1], torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    batch = ClientBatch(images, images, whole, torch.zeros(1, 1, SIDE, SIDE), ["one"])
    privacy, structure, rows = Privacy(granularity="sample", noise_multiplier=0.0), WaterFilling(subjects=False), []
    for loss in LOSSES:
        client = client_of(loss, 1, batch, "pixel_convnet", privacy)
        payload = structure.payload(client.task)
        rows.append(client.share(payload, 0, 0, 0).gradient["structure.weight"])
        assert len(structure.decode(payload, client.task, client.share(payload, 0, 0, 0)).images) == 1
    # Clipped to the same norm, rows are the same up to their sign, which the pilot shows.
    torch.testing.assert_close(rows[0].abs(), rows[1].abs(), rtol=1e-3, atol=1e-4)
    # The smoothing is all that their loss depends on.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_recon.losses.DICE_SMOOTHING", 0.0)
        update = client_of("dice", 1, batch, "pixel_convnet", privacy).share(payload, 0, 0, 0).gradient
    assert not any(bool(tensor.any()) for tensor in update.values())


@pytest.mark.parametrize(
    ("loss", "network", "outputs", "masks"),
    [
        ("binary_cross_entropy", "convnet", 5, False),
        ("mean_squared_error", "convnet", 5, False),
        ("binary_cross_entropy", "pixel_convnet", 1, True),
        ("dice", "pixel_convnet", 1, True),
        ("dice_bce", "pixel_convnet", 1, True),
        ("cross_entropy", "pixel_convnet", 2, True),
    ],
)
def test_an_honest_update_is_the_gradient_of_the_loss(
    loss: LossName, network: str, outputs: int, masks: bool, a_batch: Batch
) -> None:
    batch = masks_of(a_batch(0)) if masks else a_batch(0)
    client = client_of(loss, outputs, batch, network, Privacy(max_grad_norm=None, noise_multiplier=0.0))
    assert client.task.loss == loss
    update = client.share(ServerPayload(), 0, 0, 0).gradient
    targets = as_targets(loss, batch.labels, outputs)
    expected, _ = mean_gradient(client.network, loss_named(loss), batch.images, targets)
    for name, tensor in expected.items():
        torch.testing.assert_close(update[f"network.{name}"], tensor)


def several_labels(batch: ClientBatch, targets: Tensor) -> ClientBatch:
    return replace(batch, labels=targets)


@pytest.mark.parametrize(
    ("loss", "network", "outputs", "targets", "said"),
    [
        ("cross_entropy", "convnet", 5, torch.rand(3, 5), "several labels are learned by binary_cross_entropy"),
        ("binary_cross_entropy", "convnet", 5, torch.rand(3, 4), "set num_classes 4"),
        ("binary_cross_entropy", "convnet", 2, torch.tensor([[0.0, 3.0]] * 3), "those of binary_cross_entropy are in"),
        ("dice", "convnet", 5, torch.arange(3), "set targets masks"),
        ("dice", "convnet", 1, torch.ones(3, 1, SIDE, SIDE), "choose a network for segmentation"),
        ("binary_cross_entropy", "pixel_convnet", 5, torch.arange(3), "set targets masks, or choose another"),
        ("binary_cross_entropy", "convnet", 2, torch.arange(3), "labels up to 2, but the network has 2 classes"),
        ("cross_entropy", "convnet", 1, torch.arange(3), "needs at least 2 classes"),
    ],
)
def test_what_does_not_fit_is_answered_in_one_line(
    loss: LossName, network: str, outputs: int, targets: Tensor, said: str, a_batch: Batch
) -> None:
    with pytest.raises(UserError, match=said):
        client_of(loss, outputs, several_labels(a_batch(0), targets), network, Privacy())


def test_a_network_for_segmentation_of_torchvision_returns_logits_alone() -> None:
    network = build_network("lraspp_mobilenet_v3_large", 2).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [("binary_cross_entropy", 1), ("dice", 1), ("dice_bce", 1), ("mean_squared_error", 1), ("cross_entropy", 2)],
)
def test_the_structure_is_differentiated_for_several_samples_at_once(
    loss: LossName, outputs: int, a_batch: Batch
) -> None:
    batch, rows = masks_of(a_batch(0)), []
    for chunk in (1, 3):
        client = VictimClient(
            "pixel_convnet", outputs, privacy=Privacy(granularity="sample", noise_multiplier=0.0), noise_seed=0,
            loss=loss, chunk_size=chunk,
        )  # fmt: skip
        client.bind([batch])
        rows.append(client.share(WaterFilling(subjects=False).payload(client.task), 0, 0, 0).gradient)
    for name, tensor in rows[0].items():
        torch.testing.assert_close(rows[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_local_training_sends_images_of_masks_too(a_batch: Batch) -> None:
    local = LocalOptions(epochs=2, batch_size=2, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1))
    client = VictimClient(
        "pixel_convnet", 1, privacy=Privacy(noise_multiplier=0.0), noise_seed=0, loss="dice_bce", local=local
    )
    client.bind([masks_of(a_batch(0))])
    structure = WaterFilling(subjects=False)
    payload = structure.payload(client.task)
    assert payload.settings["fixed_signs"]
    found = structure.decode(payload, client.task, client.share(payload, 0, 0, 0))
    assert len(found.images) == 3
