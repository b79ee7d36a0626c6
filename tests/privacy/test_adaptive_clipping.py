# SPDX-License-Identifier: Apache-2.0
"""Adaptive clipping, against Opacus and dp-accounting."""

import math
import warnings

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import AdaClipDPOptimizer
from torch import nn

from lightning_recon.errors import UserError
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.privacy.parameters import Privacy


def test_clipping_norms_and_noise_are_those_of_opacus() -> None:
    torch.manual_seed(0)
    adaptive = AdaptiveClip(0.7, 0.5, unclipped_num_std=1e-6, min_clipbound=0.05, max_clipbound=3.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        model = GradSampleModule(nn.Linear(5, 1, bias=False), loss_reduction="sum")
        optimizer = AdaClipDPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0),
            noise_multiplier=0.0,
            target_unclipped_quantile=0.7,
            clipbound_learning_rate=0.5,
            max_clipbound=3.0,
            min_clipbound=0.05,
            unclipped_num_std=1e-6,
            max_grad_norm=1.0,
            expected_batch_size=8,
        )
        clip = 1.0
        for scale in (1.0, 1.0, 3.0, 0.1, 0.1, 30.0, 30.0, 30.0):
            inputs = scale * torch.randn(8, 5)
            optimizer.zero_grad()
            model(inputs).sum().backward()
            optimizer.pre_step()
            clip = adaptive.next_clip(clip, float((inputs.norm(dim=1) <= clip).sum()), 8)
            assert float(optimizer.max_grad_norm) == pytest.approx(clip, rel=1e-5)


def test_update_and_number_together_cost_what_was_asked_for() -> None:
    accounting = pytest.importorskip("dp_accounting")
    adaptive, z = AdaptiveClip(unclipped_num_std=0.8), 1.1
    own = adaptive.update_multiplier(z)
    assert own > z
    both, alone = accounting.pld.PLDAccountant(), accounting.pld.PLDAccountant()
    # A centred number changes by 1/2.
    both.compose(accounting.ComposedDpEvent([accounting.GaussianDpEvent(own), accounting.GaussianDpEvent(1.6)]))
    alone.compose(accounting.GaussianDpEvent(z))
    assert both.get_epsilon(1e-5) == pytest.approx(alone.get_epsilon(1e-5), rel=1e-3)
    assert adaptive.update_multiplier(0.0) == 0.0


def test_a_number_that_leaves_nothing_for_the_update_is_refused() -> None:
    with pytest.raises(UserError, match="below twice"):
        Privacy(1.0, 2.0, adaptive_clip=AdaptiveClip())
    with pytest.raises(UserError, match="follows from a first clipping norm"):
        Privacy(None, adaptive_clip=AdaptiveClip())
    with pytest.raises(UserError, match="accounted for Gaussian noise"):
        Privacy(1.0, 0.1, mechanism="laplace", adaptive_clip=AdaptiveClip())
    with pytest.raises(UserError, match="per_layer bounds that of each tensor"):
        Privacy(1.0, 0.1, per_layer=True, adaptive_clip=AdaptiveClip())
    with pytest.raises(UserError, match="min_clipbound is 2, which must be below max_clipbound, 1"):
        AdaptiveClip(min_clipbound=2.0, max_clipbound=1.0)


def test_clipping_norms_stay_between_their_limits() -> None:
    adaptive = AdaptiveClip(min_clipbound=0.5, max_clipbound=2.0, clipbound_learning_rate=50.0)
    assert adaptive.next_clip(1.0, -1e9, 4) == pytest.approx(2.0)
    assert adaptive.next_clip(1.0, 1e9, 4) == pytest.approx(0.5)
    assert AdaptiveClip().next_clip(1.0, 0.0, 4) == pytest.approx(math.exp(0.1))
