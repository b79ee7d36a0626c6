# SPDX-License-Identifier: Apache-2.0
"""Wrappers around a network, and what they add to the names of its parameters."""

from collections.abc import Iterable

from torch import nn

# Attributes in which wrappers keep the network: of torch.compile, Opacus, and data parallelism.
_INNER = ("_orig_mod", "_module", "module")
# Packages whose modules are wrappers where they have such an attribute.
_PACKAGES = ("torch", "opacus", "lightning", "lightning_fabric", "accelerate", "deepspeed")
# What is put around a part of a network, whose name it lengthens: torch.compile, FSDP, activation checkpointing.
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# What stands before all names in a file: wrappers, and attributes in which programs keep the network.
_BEFORE = ("module.", "_module.", "network.", "model.")


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside wrappers of PyTorch, Opacus and Lightning; a network without one is returned as it is."""
    while type(module).__module__.partition(".")[0] in _PACKAGES and not isinstance(
        module, nn.Sequential | nn.ModuleDict
    ):
        inner = next((one for name, one in module.named_children() if name in _INNER), None)
        if inner is None:
            break
        module = inner
    return module


def plain_name(name: str) -> str:
    """The name of a parameter without what is put around parts of a network."""
    for part in _WITHIN:
        name = name.replace(part, "")
    return name


def common_prefix(names: Iterable[str], own: Iterable[str]) -> str:
    """The prefix of wrappers under which most of a network's own names are found; an empty one if none fits better.

    Args:
        names: in a file, without what `plain_name` removes.
        own: the network's own names.
    """
    found, wanted, prefixes = list(names), set(own), {"": None}
    for name in found:
        prefix, rest = "", name
        while part := next((one for one in _BEFORE if rest.startswith(one)), ""):
            prefix, rest = prefix + part, rest.removeprefix(part)
            prefixes[prefix] = None
    return max(prefixes, key=lambda one: sum(key.startswith(one) and key[len(one) :] in wanted for key in found))
