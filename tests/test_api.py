# SPDX-License-Identifier: Apache-2.0
"""The public Python API runs its example, and is imported only when it is used."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_recon as lr
from lightning_recon import api

ROOT = Path(__file__).parents[1]


def test_the_example_runs() -> None:
    assert doctest.testmod(api).failed == 0


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    # Two smooth images: a random plane wave in each channel.
    x = torch.linspace(0, 6, 32)
    phase = torch.rand(2, 3, 1, 1, generator=generator) * 6
    images = 0.5 + 0.4 * torch.sin(x[:, None] + phase) * torch.cos(x + 2 * phase)
    space = {"images": images, "labels": torch.tensor([3, 5])}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), space)
    result = space["result"]
    assert isinstance(result, lr.AttackResult)
    assert result.psnr.min() > 35
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000


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
    update = lr.privatized_update(model, images, torch.tensor([3]), lr.Privacy(1.0, 0.0))
    assert torch.linalg.vector_norm(torch.cat([value.flatten() for value in update.values()])) <= 1.0 + 1e-6
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
