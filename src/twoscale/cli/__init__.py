"""The command line: one file a verb, each a function whose parameters are its options."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``twoscale`` with these arguments (by default the process's), and exit.

    Exit codes: 0 done, 1 verify found a difference, 2 the user's input was wrong (one line says what),
    130 interrupted.
    """
    from tyro.extras import SubcommandApp

    from twoscale import __version__
    from twoscale.cli import data, evaluate, export, inspect, lab, quantize, train, verify
    from twoscale.errors import TwoscaleError

    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        sys.stdout.write(f"twoscale {__version__}\n")
        return
    app = SubcommandApp()
    app.command(lab.lab_command, name="lab")
    app.command(train.train_command, name="train")
    app.command(evaluate.eval_command, name="eval")
    app.command(inspect.inspect_command, name="inspect")
    app.command(quantize.quantize_command, name="quantize")
    app.command(verify.verify_command, name="verify")
    app.command(export.export_command, name="export")
    data_app = SubcommandApp()
    data_app.command(data.list_command, name="list")
    data_app.command(data.fetch_command, name="fetch")
    data_app.__doc__ = "Data sets: list them, fetch them."
    app.command(data_app, name="data")
    try:
        code = app.cli(
            prog="twoscale",
            description="Train image classifiers; turn them into integer-only networks with the same bits everywhere.",
            args=words or ["--help"],
            config=(),
        )
        sys.stdout.flush()
    except TwoscaleError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("twoscale: interrupted; results that were complete are kept\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    if isinstance(code, int) and code:
        sys.exit(code)


def _fail(message: str) -> None:
    sys.stderr.write(f"twoscale: error: {message}\n")
    sys.exit(2)
