# SPDX-License-Identifier: Apache-2.0
"""The target network: construction, input normalization, its classifier head, and whether it can be trained."""
