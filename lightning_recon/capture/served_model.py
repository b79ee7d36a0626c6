# SPDX-License-Identifier: Apache-2.0
"""A malicious server's model for frameworks that ship state dicts, and clip and noise all that is in them."""

from copy import deepcopy

from torch import nn

from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.layer import build_layer
from lightning_recon.structure.server_layer import TamperedNetwork


def served_model(network: nn.Module, payload: ServerPayload) -> TamperedNetwork:
    """The network with the server's structure, whose state dict holds no buffers of the structure.

    The structure's buffers are part of the code instead: thresholds may be infinite, and indices are integers, which
    filters that clip and add noise would corrupt.

    Args:
        network: of the clients; it is copied.
        payload: with a structure.
    """
    structure = build_layer(payload)
    for module in structure.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return TamperedNetwork(deepcopy(network), structure)
