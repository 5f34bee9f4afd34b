# SPDX-License-Identifier: MIT
"""The demo as a script: the same as `art-wdro demo`; art_wdro/_cli/demo.py is what to read."""

from art_wdro._cli.demo import main

if __name__ == "__main__":
    main()
