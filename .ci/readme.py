"""Print a named block of README.md, or check that a file ends with one.

``readme.py show NAME`` prints the block; ``readme.py check NAME FILE`` fails unless FILE ends with the block's text;
``readme.py check-words NAME FILE`` lets the figures differ, for what is measured.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def block(name):
    match = re.search(rf"<!-- block: {re.escape(name)} -->\n```\w*\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    if match is None:
        sys.exit(f"README.md has no block {name!r}")
    return match.group(1)


def words(text):
    """Return a text without its figures, and without the space and the lines that make tables of them."""
    return re.sub(r"[-+]?\d+(\.\d+)?", "#", re.sub(r"-{2,}", "", text)).split()


def main():
    action, name, *rest = sys.argv[1:]
    if action == "show":
        sys.stdout.write(block(name))
    elif action == "check":
        printed = Path(rest[0]).read_text("utf-8")
        if not printed.endswith(block(name)):
            sys.exit(f"README.md, block {name!r}, is not what was printed:\n{printed}")
    elif action == "check-words":
        printed = words(Path(rest[0]).read_text("utf-8"))
        expected = words(block(name))
        if printed[-len(expected) :] != expected:
            sys.exit(f"README.md, block {name!r}, has other words than what was printed:\n{' '.join(printed)}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
