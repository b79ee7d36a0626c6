# SPDX-License-Identifier: Apache-2.0
"""What rows of ±1 inputs show of the clipping budget and of the noise."""

from dataclasses import replace

import pytest
import torch

from lightning_recon.exchange import Compression, LocalTraining, Task
from lightning_recon.exchange.local_training import ADAM
from lightning_recon.structure.clipping_budget import sign_share
from lightning_recon.structure.coding.movement import scale_free

LOCAL = LocalTraining(optimizer=ADAM, learning_rates=(1e-3,), update="delta")
TASK = Task((3, 16, 16), 10, 4, 1, "none", "update", False, 2.0, 1e-3, 1, 3, local=LOCAL)
ZEROS = 10_000


@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_the_share_is_the_squared_norm_by_that_of_the_clip(norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (16, 500), generator=generator) * 2.0 - 1
    noise = TASK.noise_multiplier * 2.0
    rows = norm * signs / signs.norm() + noise * torch.randn(signs.shape, generator=generator)
    share = sign_share(rows, noise, ZEROS, TASK)
    assert share is not None
    assert share.value == pytest.approx(norm**2 / 4, abs=4 * share.error)
    assert 1e-4 < share.error < 1e-2
    assert share.low == (norm < 2)


@pytest.mark.parametrize(
    "changes", [{"compression": Compression("top_k")}, {"granularity": "sample"}, {"aggregated": 2, "clients": 2}]
)
def test_where_the_norm_does_not_follow_from_one_clip_there_is_no_share(changes: dict[str, object]) -> None:
    assert sign_share(torch.ones(2, 3), 0.1, ZEROS, replace(TASK, **changes)) is None  # type: ignore[arg-type]
    assert sign_share(torch.ones(2, 3), 0.1, 0, TASK) is None


def test_an_optimizer_that_looks_at_whole_matrices_sends_no_signs() -> None:
    assert scale_free(LOCAL)
    assert not scale_free(replace(LOCAL, optimizer="torch.optim._adafactor.Adafactor"))
