"""Print constraints that pin every runtime dependency to its lower bound in setup.cfg: the oldest supported."""

import configparser
from pathlib import Path

TOOLS = {"test", "docs", "package", "bench"}  # what only developers run is taken as it comes


def main() -> None:
    """Print one constraint a line."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parent.parent / "setup.cfg")
    extras = [text for name, text in config["options.extras_require"].items() if name not in TOOLS]
    lines = {line for text in (config["options"]["install_requires"], *extras) for line in text.split("\n") if line}
    for line in sorted(lines):
        name, bound = line.split(">=")
        print(f"{name.strip()}=={bound.strip()}")


if __name__ == "__main__":
    main()
