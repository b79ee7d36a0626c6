# SPDX-License-Identifier: Apache-2.0
"""How a structure reads an update: detection, separation of collided samples, estimation."""
