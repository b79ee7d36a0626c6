# SPDX-License-Identifier: Apache-2.0
"""Refinement earns its place, moves each victim alone, and leaves everything but the dummies as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_recon.attack import ReconstructionAttack, TotalVariation
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientBatch, ClientDataModule, NoMasks
from lightning_recon.errors import UserError
from lightning_recon.structure import WaterFilling

NOISE_THAT_HIDES_SOME = 0.1

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.14
    pytest.mark.filterwarnings("ignore:.*logging interval"),
]


def batches(clients: int, size: int = 24) -> list[ClientBatch]:
    data = ClientDataModule(image_size=size, batch_size=4, clients=clients, masks=NoMasks())
    data.prepare_data()
    data.setup()
    return data.client_batches


@pytest.fixture
def attacked(tmp_path: Path) -> Callable[..., ReconstructionAttack]:
    def attack(
        truths: list[ClientBatch],
        steps: int = 5,
        noise: float = 0.01,
        granularity: Literal["sample", "update"] = "update",
        **arguments: Any,  # noqa: ANN401 - those of the attack
    ) -> ReconstructionAttack:
        client = VictimClient("convnet", 16, privacy=Privacy(10.0, noise, granularity), noise_seed=0)
        client.bind(truths)
        module = ReconstructionAttack(client, WaterFilling(), **arguments)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module)
        return module

    return attack


def matched_psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each picture against the nearest truth, in dB."""
    errors = torch.stack([(truth - picture).square().mean(dim=(1, 2, 3)) for picture in pictures])
    return -10 * errors.min(dim=1).values.log10()


def test_refinement_earns_its_place_where_noise_is_strong(attacked: Callable[..., ReconstructionAttack]) -> None:
    truths = batches(1, size=64)
    (found,) = attacked(truths, steps=40, granularity="sample").reconstructions()
    before, after = (matched_psnr(pictures, truths[0].images) for pictures in (found.initial, found.images))
    assert after.mean() > before.mean() + 0.05
    assert (after > before - 0.05).all()


@pytest.mark.parametrize("noise", [0.0, 2e-4, 0.02])
def test_refinement_never_costs_more_than_it_may(attacked: Callable[..., ReconstructionAttack], noise: float) -> None:
    truths = batches(1)
    (found,) = attacked(truths, steps=40, noise=noise).reconstructions()
    before, after = (matched_psnr(pictures, truths[0].images) for pictures in (found.initial, found.images))
    assert after.mean() > before.mean() - 0.05


@pytest.mark.parametrize("granularity", ["update", "sample"])
def test_without_noise_images_are_exact_and_refinement_keeps_them(
    attacked: Callable[..., ReconstructionAttack], granularity: Literal["sample", "update"]
) -> None:
    truths = batches(1)
    (found,) = attacked(truths, steps=40, noise=0.0, granularity=granularity).reconstructions()
    assert torch.equal(found.initial, found.images)
    assert float(matched_psnr(found.images, truths[0].images).min()) > 100


def test_any_denoiser_may_be_plugged_in(attacked: Callable[..., ReconstructionAttack]) -> None:
    ours, smooth = (
        attacked(batches(1), denoiser=denoiser).reconstructions()[0] for denoiser in (None, TotalVariation())
    )
    assert torch.equal(ours.initial, smooth.initial)
    assert not torch.allclose(ours.images, smooth.images, atol=1e-3)
    roughness = [float(one.diff(dim=-1).abs().mean()) for one in (smooth.initial, smooth.images)]
    assert roughness[1] < roughness[0]


def test_models_of_deepinv_take_part(attacked: Callable[..., ReconstructionAttack]) -> None:
    from deepinv.models import DRUNet

    (found,) = attacked(batches(1), steps=1, denoiser=DRUNet(pretrained=None, nc=[4, 4, 4, 4])).reconstructions()
    assert found.images.isfinite().all()
    assert not torch.equal(found.images, found.initial)


def test_victims_do_not_influence_one_another(attacked: Callable[..., ReconstructionAttack]) -> None:
    alone = attacked(batches(1)).reconstructions()
    among = attacked(batches(2), draws=2).reconstructions()
    assert [(one.client, one.draw) for one in among] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.allclose(among[0].images, alone[0].images, atol=1e-5)


def test_dummies_without_a_picture_stay_where_they_are(attacked: Callable[..., ReconstructionAttack]) -> None:
    module = attacked(batches(1), noise=NOISE_THAT_HIDES_SOME)
    (found,) = module.reconstructions()
    assert 1 <= len(found.images) < 4
    moved = module.dummies.detach().abs().flatten(1).amax(dim=1) > 0
    assert moved[: len(found.images)].all()
    assert not moved[len(found.images) :].any()


def test_pictures_are_pictures_and_at_most_one_a_victim(attacked: Callable[..., ReconstructionAttack]) -> None:
    for one in attacked(batches(2), noise=NOISE_THAT_HIDES_SOME).reconstructions():
        for pictures in (one.images, one.initial):
            assert 1 <= pictures.shape[0] <= 4
            assert pictures.shape[1:] == (3, 24, 24)
            assert pictures.dtype == torch.float32
            assert 0 <= pictures.min() <= pictures.max() <= 1


def test_only_the_dummies_are_parameters(attacked: Callable[..., ReconstructionAttack]) -> None:
    module = attacked(batches(1))
    assert [name for name, _ in module.named_parameters()] == ["dummies"]
    assert module.dummies.shape == (4 * 4, 3, 24, 24)  # four times as many images as announced
    assert isinstance(module.client, VictimClient)
    untouched = VictimClient("convnet", 16).network.state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in module.client.network.state_dict().items())


def test_a_rank_without_clients_takes_part_with_nothing(attacked: Callable[..., ReconstructionAttack]) -> None:
    module = attacked(batches(1), steps=0)
    module.objective = None
    loss = module.training_step(None, 0)
    loss.backward()
    assert loss == 0
    assert module.dummies.grad is not None
    assert not module.dummies.grad.any()


@pytest.mark.parametrize("draws", [0, -1])
def test_at_least_one_draw(draws: int) -> None:
    with pytest.raises(UserError) as raised:
        ReconstructionAttack(VictimClient("convnet", 16), WaterFilling(), draws=draws)
    assert "--model.draws" in raised.value.for_command_line
