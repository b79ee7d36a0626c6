# SPDX-License-Identifier: Apache-2.0
"""Which label came in which local step is read from the update alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_recon.attack import GradientInversion
from lightning_recon.attack.inversion import label_order
from lightning_recon.attack.inversion.fisher_information import information
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.label_order import _exchanged, _within_steps, ordered_labels
from lightning_recon.attack.inversion.objective import GradientMatching
from lightning_recon.attack.inversion.observations import mean_update
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.exchange import LocalTraining
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.regularizers import Regularization
from tests.local_sgd import local_sgd

Honest = Callable[..., VictimClient]
Inverted = Callable[..., tuple[GradientInversion, Any]]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.14
    pytest.mark.filterwarnings("ignore:.*logging interval"),
]
NOISELESS = Privacy(max_grad_norm=0.1, granularity="update")


@pytest.mark.parametrize("labels", [[4, 1, 3, 0], [2, 3, 2, 0]], ids=["all different", "one twice"])
def test_the_order_of_local_steps_is_found(labels: list[int], honest: Honest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_order, "_SEARCHED", 8)  # of 24, for the time it takes
    client = honest("perceptron", count=4, privacy=NOISELESS, local=local_sgd(4, 0.3))
    client._batches[0].labels.copy_(torch.tensor(labels))
    model, parametrization = (
        functionalize(client.network, True),
        Parametrization("balanced", public_statistics(8, 8, False), torch.device("cpu")),
    )
    parametrization.balance(information(model, client.task, parametrization))
    matching = GradientMatching(model, client.task, parametrization, "likelihood", Regularization(spectrum=1.0))
    update = mean_update(client, (0, 0), model, None)
    assert ordered_labels(torch.tensor(labels).sort().values, update, matching, 0, 8).tolist() == labels


def test_the_attack_orders_what_it_counted(honest: Honest, inverted: Inverted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_order, "_TRIAL", 1)
    settings = {"count": 4, "privacy": NOISELESS, "local": local_sgd(2, 0.3)}
    attack, (found,) = inverted(honest("perceptron", **settings), steps=1)
    known, _ = inverted(honest("perceptron", **settings), steps=1, labels="oracle")
    assert found.labels.sort().values.tolist() == known.observations[0, 0].labels.sort().values.tolist()
    assert (attack.oracles, known.oracles) == ((), ("labels",))


def test_where_nothing_comes_later_nothing_is_ordered(honest: Honest, inverted: Inverted) -> None:
    attack, _ = inverted(honest("perceptron", count=4, privacy=NOISELESS), steps=1)
    labels = attack.observations[0, 0].labels
    assert torch.equal(labels, labels.sort().values)


def test_orders_within_a_step_are_the_same_one(honest: Honest) -> None:
    task = replace(honest("perceptron", count=4, privacy=NOISELESS).task, local=LocalTraining(batch_size=2))
    assert _within_steps([3, 1, 2, 0], task) == (1, 3, 0, 2)
    near = _exchanged((0, 1, 2, 3), task)
    assert sorted(near) == [(0, 2, 1, 3), (0, 3, 1, 2), (1, 2, 0, 3), (1, 3, 0, 2)]
    assert _exchanged((1, 1, 1, 1), task) == []
