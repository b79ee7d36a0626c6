# SPDX-License-Identifier: Apache-2.0
"""One prior serves both attacks: as a denoiser, and as a term of the objective."""

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.attack import LargeDenoiser, SmallDenoiser, TotalVariation
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.objective import Candidates, GradientMatching
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.priors import DenoiserPrior, Prior
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.regularizers import Regularization

TASK = Task((3, 8, 8), 5, 2, 1, "x", "update", False, None, 0.0, 1, 2)


class Blur(nn.Module):
    """A denoiser that is no prior, as another library may have it."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Average neighbours."""
        return nn.functional.avg_pool2d(x, 3, 1, 1) + 0 * sigma[:, None, None, None]


class Dark(Prior):
    """A prior without a denoiser."""

    def value(self, images: Tensor) -> Tensor:
        """Dark images are likely."""
        return images.sum()


def objective(priors: list[Prior]) -> GradientMatching:
    torch.manual_seed(0)
    model = functionalize(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), batch_statistics=False)
    parametrization = Parametrization("pixels", public_statistics(8, 8, False), torch.device("cpu"))
    return GradientMatching(model, TASK, parametrization, "euclidean", Regularization(norm=0.1), None, priors)


def candidates(count: int) -> Candidates:
    dummies = torch.randn(count, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    observed = {"1.weight": torch.zeros(count, 5, 192), "1.bias": torch.zeros(count, 5)}
    return Candidates(dummies, None, torch.zeros(count, 2, dtype=torch.int64), observed, None, None)


def test_a_denoiser_regularizes_by_what_it_removes() -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    prior = DenoiserPrior(Blur(), sigma=0.1)
    (gradient,) = torch.autograd.grad(prior.value(images), images)
    torch.testing.assert_close(gradient, (images - Blur()(images, torch.zeros(2))).detach() / 0.1**2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "prior",
    [TotalVariation(strength=0.3), DenoiserPrior(Blur(), 2.0), SmallDenoiser(strength=0.1), Dark(0.5)],
    ids=["total variation", "other library", "U-Net", "own"],
)
@torch.no_grad()
def test_priors_add_to_the_objective(prior: Prior, count: int) -> None:
    prior = prior.eval().requires_grad_(False)
    many, plain, more = candidates(count), objective([]), objective([prior])
    before, after = plain(many), more(many)
    images = plain.parametrization.images(many.dummies)
    added = torch.stack([prior.strength * prior.value(one) for one in images])
    torch.testing.assert_close(after.value - before.value, added, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(after.dummies, before.dummies)


def test_a_prior_of_a_denoiser_is_trusted_as_far_as_that_denoiser() -> None:
    assert DenoiserPrior(LargeDenoiser(weights=None)).largest_sigma == LargeDenoiser.largest_sigma
    assert not hasattr(DenoiserPrior(Blur()), "largest_sigma")


def test_a_prior_without_a_denoiser_does_not_refine() -> None:
    with pytest.raises(UserError, match="Dark is no denoiser"):
        Dark()(torch.zeros(1, 3, 8, 8), torch.ones(1))
