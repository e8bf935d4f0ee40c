"""``python -m alpa_serve.replay``: the command line."""

import sys

from alpa_serve.replay.cli import main

if __name__ == "__main__":
    sys.exit(main())
