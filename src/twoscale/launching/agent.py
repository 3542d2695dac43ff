"""The process between the command line and the ranks: torchrun, which dies with its parent.

    python -m twoscale.launching.agent PARENT_PID report|quiet <arguments of torchrun>

"report" leaves torchrun's report of failed ranks as it is; "quiet" says one line instead.
"""

from __future__ import annotations

import logging
import signal
import sys

from twoscale.launching.processes import die_with

_SAID = (2, 130)
"""Exit codes of ranks that have said in one line why they ended: wrong input, and Ctrl-C."""


def main() -> None:
    """Run PyTorch's launcher."""
    die_with(int(sys.argv[1]))
    quiet = sys.argv[2] == "quiet"
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    if quiet:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(sys.argv[3:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if not quiet:
            raise
        if failure.exitcode in _SAID:
            sys.exit(failure.exitcode)
        how = f"exit code {failure.exitcode}"
        if failure.exitcode < 0:
            how = signal.Signals(-failure.exitcode).name
        sys.stderr.write(f"twoscale: process {rank} ended with {how}, and the others were ended with it\n")
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun has its own way with it
    main()
