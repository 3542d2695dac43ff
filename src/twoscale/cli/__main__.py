"""``python -m twoscale.cli``, for launchers that take a module."""

from twoscale.cli import main

if __name__ == "__main__":
    main()
