"""``python -m eschedule`` is the console script."""

from eschedule.cli.main import main

if __name__ == "__main__":
    main()
