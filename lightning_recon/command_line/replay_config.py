# SPDX-License-Identifier: Apache-2.0
"""The config that repeats a run: plain values of the run's own config, and classes of this package.

A run folder may come from an untrusted source, and a config can name any function to be called. Therefore only classes
of this package, optimizers of torch, and networks that torchvision or timm know by name are accepted.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch

from lightning_recon.attack.recording import check_recorded
from lightning_recon.deprecated import modernized, with_earlier_behaviour
from lightning_recon.errors import UserError
from lightning_recon.evaluation.run_record import read_results
from lightning_recon.files.faults import readable
from lightning_recon.files.serialization import read_yaml
from lightning_recon.networks.construction import is_class_path
from lightning_recon.privacy.parameters import mechanism_named

PACKAGE: Final = "lightning_recon"
FLAG: Final = "--trust_config true"
# The default of earlier versions, whose `results.json` does not name the denoiser.
EARLIER_DENOISER: Final = "lightning_recon.attack.SmallDenoiser"

# The options that affect the attack, all plain values; loggers, profilers, plugins and strategies run code.
TRAINER: Final = (
    *("accelerator", "devices", "precision", "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"),
    *("limit_train_batches", "log_every_n_steps", "deterministic", "benchmark", "detect_anomaly", "inference_mode"),
    *("num_sanity_val_steps", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
)
_PATHS = ("statistics", "weights", "checkpoint")  # values that name files, which may look like class paths
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

log = logging.getLogger("lightning_recon")


def replay_config(run: Path, output: Path, trust: bool = False) -> dict[str, Any]:
    """The config with which `recon fit` repeats a run from its recorded exchange.

    Args:
        run: folder of the run, with config.yaml and exchange/.
        output: folder for everything that the replay writes.
        trust: whether to keep, and therefore run, code outside this package that config.yaml names.

    Raises:
        UserError: the config is missing or damaged, or names code outside this package.
    """
    path = run / "config.yaml"
    if not path.exists():
        raise UserError(f"{run} holds no config.yaml: name the folder of a finished run")
    check_recorded(run / "exchange")
    with readable(path):
        config = modernized(read_yaml(path))
        model, trainer = _mapping(config["model"], "model"), _mapping(config["trainer"], "trainer")
        own = dict(_mapping(model["init_args"], "model.init_args"))
        client = _mapping(own.get("client") or {}, "model.init_args.client")
        settings = _mapping(client.get("init_args") or {}, "client.init_args")
        mechanism = _mapping(settings.get("privacy") or {}, "client.init_args.privacy").get("mechanism")
        if "network" in own and own["network"] is None:
            own["network"] = settings.get("network")
        if "structure" in own:
            own["structure"] = with_earlier_behaviour(own["structure"])
        if own.get("denoiser", "") is None and "denoiser" not in (read_results(run) or {"denoiser": None}):
            own["denoiser"] = {"class_path": EARLIER_DENOISER}
        own["client"], own["update"] = None, None  # the recorded exchange replaces them
        kept: dict[str, Any] = {"seed_everything": config["seed_everything"]}
        kept["model"] = {"class_path": model["class_path"], "init_args": own}
        kept |= {name: dict(_mapping(config[name], name)) for name in ("image_grid", "results") if name in config}
        kept["trainer"] = dict(trainer)
    if not trust:
        kept["trainer"] = _plain_trainer(trainer, path)
        for value, place in _code(kept, ""):
            if not is_allowed(value):
                raise UserError(
                    f"{path} names {value} ({place}), which is no class of this package, and a folder of someone "
                    f"else's may name anything: look at it, and add {FLAG} if you trust it"
                )
        network = own.get("network")
        if isinstance(network, str) and is_class_path(network):
            raise UserError(
                f"{path} names the network {network}, whose code would run: look at it, and add {FLAG} if you trust it"
            )
        if isinstance(mechanism, str) and "." in mechanism:
            raise UserError(
                f"{path} names the mechanism {mechanism}, whose code would run: look at it, and add {FLAG} if you "
                "trust it"
            )
    elif isinstance(mechanism, str):
        mechanism_named(mechanism, imported=False)  # the recorded exchange names it too, but imports nothing
    own["client"] = {
        "class_path": "lightning_recon.exchange.RecordedClient",
        "init_args": {"folder": str(run / "exchange")},
    }
    kept["trainer"]["default_root_dir"] = str(output)
    return kept


def is_allowed(path: str) -> bool:
    """Whether a dotted path is a class of this package, a function of its attacks, or an optimizer of torch."""
    module, _, name = path.rpartition(".")
    if module == "torch.optim":
        found: object = getattr(torch.optim, name, None)
        return isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    if not path.startswith(f"{PACKAGE}."):
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:  # such as lightning_recon.files.atomic.os, an attribute of a module
        return False
    home = str(getattr(found, "__module__", ""))
    if isinstance(found, type):
        return home.split(".")[0] == PACKAGE
    return callable(found) and home.startswith(f"{PACKAGE}.attack.")


def _plain_trainer(trainer: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The plain values of the trainer that matter, and callbacks of this package; a warning names the rest."""
    kept = {name: value for name, value in trainer.items() if name in TRAINER and _is_plain(value)}
    if trainer.get("logger") is False:
        kept["logger"] = False
    callbacks = trainer.get("callbacks") or []
    given = callbacks if isinstance(callbacks, list) else [callbacks]
    own = [one for one in given if isinstance(one, dict) and is_allowed(str(one.get("class_path")))]
    kept["callbacks"] = own or None
    left = ["callbacks"] * (len(own) < len(given))
    left += [name for name in ("logger", "plugins", "strategy", "profiler") if not _is_plain(trainer.get(name))]
    if left:
        log.warning("%s: trainer.%s left out, whose code is not this package's; see %s", path, ", ".join(left), FLAG)
    return kept


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int) for item in value)  # devices
    return value is None or isinstance(value, bool | int | float | str)


def _code(value: object, place: str) -> Iterator[tuple[str, str]]:
    """All class paths in a config, and all texts that look like one, with their places."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "class_path":
                yield str(item), f"{place}.{key}".removeprefix(".")
            elif key not in _PATHS:
                yield from _code(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _code(item, f"{place}.{index}")
    elif isinstance(value, str) and _DOTTED.fullmatch(value):
        yield value, place.removeprefix(".")


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no mapping")
    return value
