# SPDX-License-Identifier: MIT
"""`python -m art_wdro`: the command line."""

import sys

try:
    from art_wdro._cli import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    sys.exit("the command line needs click: pip install 'art-wdro[cli]'")

if __name__ == "__main__":
    main()
