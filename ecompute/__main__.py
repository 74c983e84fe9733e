"""``python -m ecompute`` is the console script."""

from ecompute.cli import main

if __name__ == "__main__":
    main()
