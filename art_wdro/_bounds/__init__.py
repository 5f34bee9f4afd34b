# SPDX-License-Identifier: MIT
"""Bounds of a network over balls and boxes: layers, intervals, lines, cells, branch and bound."""
