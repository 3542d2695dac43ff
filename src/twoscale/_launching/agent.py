"""The process between the command line and the ranks: torchrun, which dies with its parent.

    python -m twoscale._launching.agent PARENT_PID report|quiet <arguments of torchrun>

"report" leaves torchrun's report of failed ranks as it is; "quiet" says one line for each instead, and starts no rank
again whose input was wrong.
"""

from __future__ import annotations

import logging
import signal
import sys

from twoscale._launching.processes import die_with

_SAID = (2, 130)
"""Exit codes of ranks that have said in one line why they ended: wrong input, and Ctrl-C."""
_FAILED = "failed (exitcode: %s) local_rank: %s"
"""How torchrun's log line on the first rank that failed begins; it has no other way to tell before it starts again."""


class _Failures(logging.Handler):
    """Says of each rank whose end makes torchrun start all of them again which it was, and how it ended."""

    def __init__(self, restarts: int) -> None:
        super().__init__()
        self._restarts, self._count = restarts, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a line of torchrun's log."""
        if not str(record.msg).startswith(_FAILED) or not isinstance(record.args, tuple):
            return
        code, rank = int(str(record.args[0])), record.args[1]
        if code in _SAID:  # the same would happen again
            sys.exit(code)
        self._count += 1
        if self._count <= self._restarts:
            _say(f"process {rank} {_how(code)}; all are started again, restart {self._count} of {self._restarts}")


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _say(line: str) -> None:
    sys.stderr.write(f"twoscale: {line}\n")
    sys.stderr.flush()


def _hear(restarts: int) -> None:
    """Let lines of torchrun's log be heard instead of printed."""
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    log = logging.getLogger("torch.distributed.elastic")
    log.setLevel(logging.ERROR)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.addHandler(_Failures(restarts))


def main() -> None:
    """Run PyTorch's launcher."""
    die_with(int(sys.argv[1]))
    quiet, arguments = sys.argv[2] == "quiet", sys.argv[3:]
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import main as torchrun

    if quiet:
        _hear(get_args_parser().parse_args(arguments).max_restarts)
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if not quiet:
            raise
        if failure.exitcode in _SAID:
            sys.exit(failure.exitcode)
        _say(f"process {rank} {_how(failure.exitcode)}, and the others were ended with it")
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun has its own way with it
    main()
