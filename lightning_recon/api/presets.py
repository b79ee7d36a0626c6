# SPDX-License-Identifier: Apache-2.0
"""The shipped gradient inversion attacks as settings of the search."""

from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_recon.attack.inversion.settings import InversionSettings
from lightning_recon.command_line.config_files import read_config
from lightning_recon.command_line.shipped_configs import shipped
from lightning_recon.errors import UserError
from lightning_recon.priors.regularizers import Regularization
from lightning_recon.suggestions import closest

_CLASS = "lightning_recon.attack.GradientInversion"


def inversion_preset(name: str) -> tuple[InversionSettings, int]:
    """Settings and number of steps of a shipped attack.

    Args:
        name: Of a config under `configs/attack/` whose attack is gradient inversion, "likelihood" for example.

    Raises:
        UserError: There is none of that name.
    """
    paths = {Path(one).stem: path for one, path in shipped().items() if one.startswith("attack/")}
    content = read_config(str(paths[name])) if name in paths else {}
    if content.get("model", {}).get("class_path") != _CLASS:
        known = [one for one, path in paths.items() if _CLASS in path.read_text(encoding="utf-8")]
        raise UserError(f"there is no preset {name!r} of gradient inversion: {_advice(name, known)}")
    options: dict[str, Any] = content["model"]["init_args"]
    own = {field.name: options[field.name] for field in fields(InversionSettings)}
    module, _, attribute = own["optimizer"]["class_path"].rpartition(".")
    optimizer = partial(getattr(import_module(module), attribute), **own["optimizer"].get("init_args", {}))
    settings = {**own, "optimizer": optimizer, "regularization": Regularization(**own["regularization"]), "priors": ()}
    return InversionSettings(**settings), int(content["trainer"]["max_steps"])


def _advice(name: str, known: Iterable[str]) -> str:
    near = closest(name, known)
    return f"did you mean {near}?" if near else f"choose one of {', '.join(known)}"
