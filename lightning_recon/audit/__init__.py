# SPDX-License-Identifier: Apache-2.0
"""Many attacks under many protections, and what they come to for the people who choose the parameters."""
