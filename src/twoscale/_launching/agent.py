"""The process between the command line and the ranks: torchrun, which ends with its parent.

    python -m twoscale._launching.agent report|quiet <arguments of torchrun>

"report" keeps torchrun's report of failed ranks. "quiet" prints one line for each instead, and does not restart ranks
that ended because of wrong input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from twoscale._environment import collect_seldom
from twoscale._launching.processes import PARENT, die_with_parent

_EXPLAINED = (2, 130)
"""Exit codes of ranks that have printed the reason themselves: wrong input, and Ctrl-C."""
_FAILED = "failed (exitcode: %s) local_rank: %s"
"""Beginning of torchrun's log line about the first failed rank, its only report of a failure before a restart."""


class _Failures(logging.Handler):
    """Prints which rank failed, and how, each time that torchrun restarts all of them."""

    def __init__(self, restarts: int) -> None:
        super().__init__()
        self._restarts, self._count = restarts, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a line of torchrun's log."""
        if not str(record.msg).startswith(_FAILED) or not isinstance(record.args, tuple):
            return
        code, rank = int(str(record.args[0])), record.args[1]
        if code in _EXPLAINED:  # the same would happen again
            sys.exit(code)
        self._count += 1
        if self._count <= self._restarts:
            _print(f"process {rank} {_how(code)}; all are started again, restart {self._count} of {self._restarts}")


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    # Unless a user sent it, the kernel did, because it was out of memory.
    return f"was ended by {name}" + (", usually because memory ran out" if name == "SIGKILL" else "")


def _print(line: str) -> None:
    sys.stderr.write(f"twoscale: {line}\n")
    sys.stderr.flush()


def _take_log(restarts: int) -> None:
    """Handle torchrun's log here instead of printing it."""
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    log = logging.getLogger("torch.distributed.elastic")
    log.setLevel(logging.ERROR)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.addHandler(_Failures(restarts))


def main() -> None:
    """Run PyTorch's launcher."""
    die_with_parent()
    collect_seldom()
    os.environ[PARENT] = str(os.getpid())  # for the ranks
    quiet, arguments = sys.argv[1] == "quiet", sys.argv[2:]
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import main as torchrun

    from twoscale._launching.rendezvous import register

    register()
    if quiet:
        _take_log(get_args_parser().parse_args(arguments).max_restarts)
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if not quiet:
            raise
        code = failure.exitcode
        if code not in _EXPLAINED:
            _print(f"process {rank} {_how(code)}, and the others were ended with it")
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun sets its own handler
    main()
