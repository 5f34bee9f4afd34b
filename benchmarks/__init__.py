# SPDX-License-Identifier: MIT
"""The measurements behind the figures of the docs, run from the root of the repository as modules."""
