# SPDX-License-Identifier: MIT
"""What attacks, training steps and searches cost, and how that grows."""
