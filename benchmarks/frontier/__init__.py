# SPDX-License-Identifier: MIT
"""Clean accuracy against accuracy under a shared budget: the frontier of every trainer along its own knob."""
