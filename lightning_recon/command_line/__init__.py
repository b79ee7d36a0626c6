# SPDX-License-Identifier: Apache-2.0
"""The command line: commands, options, shipped configs and LightningCLI."""
