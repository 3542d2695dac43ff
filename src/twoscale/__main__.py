"""``python -m twoscale``, for launchers that take a module."""

from twoscale._cli import main

if __name__ == "__main__":
    main()
