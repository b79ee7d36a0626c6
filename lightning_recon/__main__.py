# SPDX-License-Identifier: Apache-2.0
"""`python -m lightning_recon`: the `recon` command."""

from lightning_recon.cli import main

if __name__ == "__main__":
    main()
