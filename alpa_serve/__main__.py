"""``python -m alpa_serve``: the command line."""

import sys

from alpa_serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
