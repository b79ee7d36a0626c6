# SPDX-License-Identifier: Apache-2.0
"""`recon` does not load `scipy.signal` and `scipy.stats`, which take a second, before something uses them."""

import subprocess
import sys

import pytest

DEFER = (
    "import sys; from lightning_recon.command_line.deferred_imports import defer_signal_processing as defer; defer();"
)
AS_TORCHMETRICS = (
    "import scipy.signal;"
    "assert hasattr(scipy.signal, 'hamming');"
    "assert 'scipy.stats' not in sys.modules, 'loaded already';"
)


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_deferred_module_is_the_real_one_once_it_is_used() -> None:
    run(
        DEFER + AS_TORCHMETRICS + "from scipy.signal import convolve;"
        "assert convolve([1, 2], [1, 1]).tolist() == [1, 3, 2];"
        "assert type(scipy.signal) is type(sys);"
        "assert scipy.signal.hamming(5).tolist() == scipy.signal.windows.hamming(5).tolist()"
    )


def test_what_torchmetrics_adds_loads_the_module_when_it_is_called() -> None:
    run(
        DEFER + AS_TORCHMETRICS + "window = scipy.signal.hamming(5);"
        "assert 'scipy.stats' in sys.modules;"
        "assert window.tolist() == scipy.signal.windows.hamming(5).tolist()"
    )


def test_submodules_and_unknown_names_behave_as_without_it() -> None:
    run(
        DEFER + "import scipy.signal, scipy.signal.windows;"
        "assert scipy.signal.windows.hamming(3)[1] == 1;"
        "assert not hasattr(scipy.signal, 'no_such_function')"
    )


def test_a_loaded_module_stays_as_it_is() -> None:
    run("import scipy.signal;" + DEFER + "assert type(scipy.signal) is type(sys) and scipy.signal.convolve")


@pytest.mark.slow
def test_the_command_imports_neither_before_a_run() -> None:
    run(
        DEFER + "import lightning_recon.command_line.lightning_cli;"
        "loaded = {'scipy.stats', 'opacus', 'flwr', 'timm', 'skimage'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
