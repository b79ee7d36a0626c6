# SPDX-License-Identifier: Apache-2.0
"""What makes the search faster does not change what it finds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.inversion.classifier_head import find_head
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.objective import Candidates, Evaluated, GradientMatching
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.regularizers import Regularization
from tests.local_sgd import local_sgd

Honest = Callable[..., VictimClient]
PENALTIES = Regularization(total_variation=0.2, features=0.1)


def objective(client: VictimClient, penalties: Regularization = PENALTIES) -> GradientMatching:
    model = functionalize(client.network, batch_statistics=False)
    parametrization = Parametrization("pixels", public_statistics(8, 8, False, None), torch.device("cpu"))
    head = find_head(model, torch.rand(2, 3, 8, 8))
    return GradientMatching(model, client.task, parametrization, "cosine", penalties, head)


def guesses(client: VictimClient, count: int, joint: bool = False) -> Candidates:
    """Guesses at updates of random pictures, every one at its own."""
    generator = torch.Generator().manual_seed(0)
    model, victims = functionalize(client.network, batch_statistics=False), client.task.victims
    pictures, dummies = torch.randn(2, count, victims, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (count, victims), generator=generator)
    updates = [client_update(model, *pair, client.task)[0] for pair in zip(pictures, labels, strict=True)]
    seen = {name: torch.stack([one[name] for one in updates]) for name in updates[0]}
    logits = torch.randn(count, victims, 5, generator=generator) if joint else None
    return Candidates(dummies, logits, labels, seen, None, None)


def one_of(many: Candidates, index: int) -> Candidates:
    logits = None if many.logits is None else many.logits[index : index + 1]
    seen = {name: tensor[index : index + 1] for name, tensor in many.observed.items()}
    return Candidates(many.dummies[index : index + 1], logits, many.labels[index : index + 1], seen, None, None)


def parts(found: Evaluated) -> list[Tensor]:
    return [one for one in (found.value, found.dummies, found.logits, found.residual) if one is not None]


@pytest.mark.parametrize(
    ("joint", "settings"),
    [
        (False, {"network": "smooth", "batch_norm": "eval"}),
        (True, {"network": "smooth", "batch_norm": "eval", "count": 2, "local": local_sgd(2)}),
        (False, {"network": "perceptron", "count": 3, "privacy": Privacy(0.1, granularity="sample")}),
    ],
    ids=["one picture", "joint labels and local steps", "clipped samples"],
)
def test_alone_by_autograd_equals_together_by_transforms(joint: bool, settings: dict[str, Any], honest: Honest) -> None:
    client = honest(**settings)
    evaluate, many = objective(client), guesses(client, 3, joint)
    together = parts(evaluate(many))
    for index in range(3):
        for alone, among in zip(parts(evaluate(one_of(many, index))), together, strict=True):
            assert torch.allclose(alone[0], among[index], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_mixed_precision_finds_nearly_the_same_direction(count: int, honest: Honest) -> None:
    """Batch normalisation under autocast and a map over guesses needs care; bfloat16 keeps 8 bits."""
    client = honest("smooth", batch_norm="eval")
    evaluate, many = objective(client), guesses(client, count)
    exact = evaluate(many)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = evaluate(many)
    assert mixed.dummies.dtype == torch.float32
    assert not torch.equal(mixed.dummies, exact.dummies)  # it was mixed indeed
    cosine = torch.cosine_similarity(mixed.dummies.flatten(1), exact.dummies.flatten(1))
    assert float(cosine.min()) > 0.99
    assert torch.allclose(mixed.value, exact.value, rtol=0.02)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_compiled_objective_equals_the_plain_one(count: int, honest: Honest) -> None:
    client = honest("perceptron")
    evaluate, many = objective(client, Regularization(total_variation=0.2)), guesses(client, count)
    compiled = torch.compile(evaluate, backend="aot_eager", fullgraph=True)
    for ours, plain in zip(parts(compiled(many)), parts(evaluate(many)), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-6)
