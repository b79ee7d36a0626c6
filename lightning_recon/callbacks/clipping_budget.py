# SPDX-License-Identifier: Apache-2.0
"""The structure's share of the clipping budget, for `results.json`, and a warning where it is low."""

import logging
from collections.abc import Sequence
from typing import Any

from lightning_recon.attack import Attack, Reconstruction
from lightning_recon.exchange.local_training import SGD
from lightning_recon.structure.clipping_budget import LOW_SHARE, mean_share
from lightning_recon.structure.layer_spec import layer_spec

log = logging.getLogger(__name__)


def share_record(module: Attack, found: Sequence[Reconstruction]) -> dict[str, Any]:
    """The fields of `results.json` about the clipping budget; warns in one line if the structure's share is low.

    Args:
        module: The attack, after it shipped its payload.
        found: Its reconstructions, of every update and draw.
    """
    payload = module.payload
    spec = None if payload is None else layer_spec(payload)
    detached = None if spec is None else spec.detach_logits
    shares = [one.share for one in found]
    mean, low = mean_share(shares)
    # The optimizer gives signs their size: once the logits are detached, a server can do no better. Where it was not
    # modelled, `mismatch` names it as the cause.
    unmodelled = spec is not None and not spec.signs and module.task.local.optimizer != SGD
    if low and not unmodelled and not (spec is not None and spec.signs and detached):
        worst = min(share.value for share in shares if share is not None and share.low)
        fewer = "clients answered on fewer images or in fewer rounds than announced"
        cause = f"{fewer}, or their gradients did not reach the clip, for which a larger strength helps"
        if not detached:
            cause = (
                f"the network's own gradient took the rest (set detach_logits true, or a larger strength), or {fewer}"
            )
        log.warning(
            "in %d of %d updates the structure has less than %.0f %% of the clipping budget (down to %.2g %%), so this "
            "run shows less than a server could see: %s",
            low,
            len(shares),
            100 * LOW_SHARE,
            100 * max(worst, 0.0),
            cause,
        )
    known = any(share is not None for share in shares)
    return {"detached_logits": detached, "structure_share": mean, "low_shares": low if known else None}
