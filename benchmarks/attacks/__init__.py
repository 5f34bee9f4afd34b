# SPDX-License-Identifier: MIT
"""What attacks leave and certificates promise of a network."""
