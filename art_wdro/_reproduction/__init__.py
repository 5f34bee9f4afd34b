# SPDX-License-Identifier: MIT
"""The training paper's protocol, its cells, its tables beside ours."""
