"""``python -m twoscale``, for launchers that take a module."""

from __future__ import annotations

import os
import traceback
from typing import NoReturn

from twoscale._cli import main
from twoscale._launching.processes import die_with_parent, leave


def _main_of_rank() -> NoReturn:
    """Run the command line in a process that torchrun started, and exit as such a process must."""
    die_with_parent()  # before slow imports
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    if "RANK" in os.environ:
        _main_of_rank()
    main()
