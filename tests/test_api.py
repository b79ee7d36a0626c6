# SPDX-License-Identifier: Apache-2.0
"""The public Python API runs its example, and is imported only when it is used."""

import doctest
import subprocess
import sys

import torch

import lightning_recon as lr
from lightning_recon import api


def test_the_example_runs() -> None:
    assert doctest.testmod(api).failed == 0


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, lightning_recon; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_is_scored_and_drawn() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    images = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    before = [parameter.clone() for parameter in model.parameters()]
    result = lr.reconstruct(model, images, torch.tensor([3]), 1.0, 0.01, "sample", steps=1)
    assert result.psnr.shape == result.ssim.shape == (1,)
    assert result.epsilon is not None
    assert len(result.figure().axes) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
