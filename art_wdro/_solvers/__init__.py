# SPDX-License-Identifier: MIT
"""The inner problems, of tensors and callables: ascent in the W_p ball, least distances, attacks in balls."""
