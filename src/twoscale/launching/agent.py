"""The process between the command line and the ranks: torchrun, which dies with its parent.

python -m twoscale.launching.agent PARENT_PID <arguments of torchrun>
"""

from __future__ import annotations

import signal
import sys

from twoscale.launching.processes import die_with

_SAID = (2, 130)
"""Exit codes of ranks that have said in one line why they ended: wrong input, and Ctrl-C."""


def main() -> None:
    """Run PyTorch's launcher; its report of failed ranks is left out where they gave one of their own."""
    die_with(int(sys.argv[1]))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(sys.argv[2:])
    except ChildFailedError as error:
        code = min(failure.exitcode for failure in error.failures.values())
        if code not in _SAID:
            raise
        sys.exit(code)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun has its own way with it
    main()
