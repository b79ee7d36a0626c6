# SPDX-License-Identifier: Apache-2.0
"""How a structure writes images into a gradient: power allocation, spreading, channel codes, modulation."""
