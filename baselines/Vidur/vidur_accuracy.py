"""Export a placement's group as runs of Vidur, and compare latencies; see README.md here, and --help."""

import sys
from pathlib import Path

from alpa_serve.experiments.vidur_accuracy import main

if __name__ == "__main__":
    sys.exit(main(default_configs=Path(__file__).parents[2] / "alpaserve_configs.txt"))
