# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation: all of PyTorch's layers of that kind, and networks without them."""

import logging

from torch import nn

from lightning_recon.errors import UserError
from lightning_recon.opacus_import import import_opacus

# For `isinstance`.
BatchNorm = (
    nn.BatchNorm1d
    | nn.BatchNorm2d
    | nn.BatchNorm3d
    | nn.SyncBatchNorm
    | nn.LazyBatchNorm1d
    | nn.LazyBatchNorm2d
    | nn.LazyBatchNorm3d
)

log = logging.getLogger(__name__)


def without_batch_norm(network: nn.Module) -> nn.Module:
    """Replace batch normalisation, under which no sample has a gradient of its own, by group normalisation.

    Args:
        network: any network; one without batch normalisation is returned as it is.

    Returns:
        The network or a converted copy. The new layers have fresh scales (1) and shifts (0).

    Raises:
        UserError: a kind of batch normalisation that cannot be converted.
    """
    found = [module for module in network.modules() if isinstance(module, BatchNorm)]
    if not found:
        return network
    import_opacus()  # takes seconds, and most runs do without
    from opacus.validators import ModuleValidator

    fixed = ModuleValidator.fix(network)
    if left := [type(module).__name__ for module in fixed.modules() if isinstance(module, BatchNorm)]:
        raise UserError(
            f"the network's {left[0]} layers cannot be converted for --model.client.privacy.granularity sample: choose "
            "another network, or granularity update"
        )
    log.warning("Replaced %d batch normalization layers by group normalization (granularity: sample).", len(found))
    result: nn.Module = fixed
    return result
