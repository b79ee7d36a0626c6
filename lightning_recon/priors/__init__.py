# SPDX-License-Identifier: Apache-2.0
"""What is publicly known of images: statistics, transforms, denoisers, regularizers."""
