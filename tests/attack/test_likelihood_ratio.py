# SPDX-License-Identifier: Apache-2.0
"""What an update cannot hold is not vouched for: zeros, noise alone, and weights through which no picture shows."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_recon.attack import GradientInversion, Reconstruction
from lightning_recon.attack.likelihood_ratio import explained_energy, is_evident
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.noise import add_noise
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.evaluation.assignment import label_share
from lightning_recon.exchange import ClientUpdate, ServerPayload
from tests.attack.test_gradient_inversion import photographs, preset
from tests.attack.test_gradient_inversion import pytestmark as pytestmark

Honest = Callable[..., VictimClient]
Inverted = Callable[..., tuple[GradientInversion, list[Reconstruction]]]


class NoiseAlone(VictimClient):
    """Answers with noise alone, whatever its pictures are."""

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """An update that holds no picture."""
        update = super().share(payload, client, draw, round)
        nothing = {name: torch.zeros_like(tensor) for name, tensor in update.gradient.items()}
        add_noise(nothing, self.privacy.noise_std, NoiseSource(99).generators(client, draw, round))
        return replace(update, gradient=nothing)


@pytest.mark.parametrize(("name", "noise"), [("likelihood", 1e-3), ("likelihood", 0.1), ("inverting_gradients", 0.01)])
def test_noise_alone_shows_no_picture(name: str, noise: float, honest: Honest, inverted: Inverted) -> None:
    client = honest("convnet", size=16, count=2, privacy=Privacy(1.0, noise))
    client.__class__ = NoiseAlone
    _, found = inverted(client, steps=12, draws=3, **preset(name))
    assert [one.evident for one in found] == [False] * 3


@pytest.mark.parametrize("silent", ["update", "weights"])
def test_zeros_show_no_picture(silent: str, honest: Honest, inverted: Inverted) -> None:
    client = honest("convnet", size=16, count=2, privacy=Privacy(1.0, 0.0))
    if silent == "update":
        client.__class__ = NoiseAlone
    else:
        for parameter in client.network.parameters():
            parameter.data.zero_()
    for number, name in enumerate(("likelihood", "inverting_gradients")):
        _, (found,) = inverted(client, steps=3, **preset(name))
        assert not found.evident
        assert found.labels is not None
        share = label_share(found.labels, client.labels(0))
        # Weights of zero still show labels; an update of zeros shows none.
        assert share == (0 if silent == "update" else 1), number


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_pictures_that_explain_an_update_are_evident(noise: float, honest: Honest, inverted: Inverted) -> None:
    client = honest("convnet", size=16, privacy=Privacy(1.0, noise))
    client._batches[0].images.copy_(photographs(1, 16))
    _, (found,) = inverted(client, steps=30, **preset("likelihood"))
    assert found.evident


def test_the_test_keeps_its_level_where_directions_are_chosen_freely() -> None:
    """The worst that a search of n numbers can do to pure noise: the best direction of n dimensions."""
    generator, alarms, trials = torch.Generator().manual_seed(0), 0, 400
    for _ in range(trials):
        noise = torch.randn(200, generator=generator)
        best = torch.cat([noise[:50], torch.zeros(150)])
        mean = torch.randn(200, generator=generator)
        alarms += is_evident({"a": noise}, {"a": best}, {"a": mean}, 1.0, 50)
    assert alarms <= 1
    signal = torch.cat([torch.full((50,), 2.0), torch.zeros(150)])
    seen = signal + torch.randn(200, generator=generator)
    assert is_evident({"a": seen}, {"a": signal}, {"a": torch.ones(200)}, 1.0, 50)
    assert not is_evident({"a": seen}, {"a": signal}, {"a": signal}, 1.0, 50)


def test_energy_is_what_points_the_same_way() -> None:
    seen, along = {"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([10.0, 0.0])}
    assert explained_energy(seen, along) == pytest.approx(9.0)
    assert explained_energy(seen, {"a": -along["a"]}) == 0.0
    assert explained_energy(seen, {"a": torch.zeros(2)}) == 0.0
    assert not math.isnan(explained_energy({"a": torch.zeros(2)}, along))


def test_a_malicious_server_finds_nothing_in_zeros(tmp_path: Path, honest: Honest) -> None:
    from lightning.pytorch import Trainer

    from lightning_recon.attack import ReconstructionAttack
    from lightning_recon.structure import Digital, WaterFilling

    for structure in (WaterFilling(), Digital()):
        client = honest(
            "convnet", size=16, count=2, privacy=Privacy(1.0, 1e-3 if isinstance(structure, Digital) else 0.0)
        )
        client.__class__ = NoiseAlone
        attack = ReconstructionAttack(client, structure)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        Trainer(accelerator="cpu", max_steps=0, default_root_dir=tmp_path / type(structure).__name__, **quiet).fit(
            attack
        )
        assert not any(one.evident and len(one.images) for one in attack.reconstructions())
