# SPDX-License-Identifier: MIT
"""`python -m art_wdro`: the command line."""

import sys

from art_wdro._host.extras import install
from art_wdro._version import __version__

try:
    from art_wdro._cli.main import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    if sys.argv[1:] == ["--version"]:
        print(f"art-wdro, version {__version__}")
        sys.exit()
    sys.exit(f"the command line needs click: {install('cli')}")

if __name__ == "__main__":
    main()
