"""Write a placement and a trace as MaverIQ's timed commands; see README.md here, and --help."""

import sys
from pathlib import Path

from alpa_serve.experiments.command_lists import main

if __name__ == "__main__":
    sys.exit(main(default_configs=Path(__file__).parents[2] / "alpaserve_configs.txt"))
