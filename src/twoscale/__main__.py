"""``python -m twoscale``, for launchers that take a module."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from twoscale._cli import main
from twoscale._launching.processes import die_with_parent, leave, lost_peer


def _main_of_rank() -> NoReturn:
    """Run the command line in a process that torchrun started, and exit as such a process must."""
    die_with_parent()  # before slow imports
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        lost = lost_peer(error)
        if lost is None:
            traceback.print_exc()
        else:
            sys.stderr.write(
                f"twoscale: error: lost the connection to a process on another machine ({lost}); see what ended there, "
                "then start the same command on every machine again, with --resume where it was given --out\n"
            )
        code = 1
    leave(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    if "RANK" in os.environ:
        _main_of_rank()
    main()
