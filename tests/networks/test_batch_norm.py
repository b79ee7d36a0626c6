# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation is replaced where samples need gradients of their own."""

import logging

import pytest
import torch

from lightning_recon.client.gradients import find_batch_coupling_layer
from lightning_recon.networks.batch_norm import without_batch_norm
from lightning_recon.networks.construction import build_network


def test_batch_normalisation_is_replaced_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    network = build_network("resnet18", 5)
    with caplog.at_level(logging.WARNING):
        converted = without_batch_norm(network)
    assert [record.getMessage() for record in caplog.records] == [
        "Replaced 20 batch normalization layers by group normalization (granularity: sample)."
    ]
    assert find_batch_coupling_layer(converted) is None
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(converted(images)[1:], converted(images[1:]))  # no image depends on the others
    assert torch.equal(converted.conv1.weight, network.conv1.weight)
    convnet = build_network("convnet", 5)
    assert without_batch_norm(convnet) is convnet
