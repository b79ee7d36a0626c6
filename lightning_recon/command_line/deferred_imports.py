# SPDX-License-Identifier: Apache-2.0
"""Defer a module that TorchMetrics imports and no attack uses, and which takes a sixth of the time that a run loads."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

_NAME = "scipy.signal"


class _Deferred(ModuleType):
    """A module that is executed when something of it is used for the first time."""

    def hamming(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - SciPy's
        """What TorchMetrics would add to the module, if that had no such function."""
        return self.windows.hamming(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any member
        """Execute the module; called for what it does not have yet."""
        spec = self.__spec__
        if name.startswith("__") or self.__class__ is ModuleType or spec is None or spec.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment] # now an ordinary module
        spec.loader.exec_module(self)
        if "hamming" not in vars(self):
            vars(self)["hamming"] = self.windows.hamming
        return getattr(self, name)


def defer_signal_processing() -> None:
    """Let `scipy.signal`, and with it `scipy.stats`, load at its first use; call this before Lightning is imported."""
    if _NAME in sys.modules:
        return
    spec = importlib.util.find_spec(_NAME)
    if spec is None:
        return
    module = _Deferred(_NAME)
    for name, value in (
        ("__spec__", spec),
        ("__loader__", spec.loader),
        ("__file__", spec.origin),
        ("__path__", spec.submodule_search_locations),
        ("__package__", _NAME),
    ):
        setattr(module, name, value)
    sys.modules[_NAME] = module
