"""``twoscale compile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from twoscale._cli.common import File, print_json, print_line, require_integer_file
from twoscale._cli.export import require_on_grid
from twoscale._codegen.targets import VECTOR_TARGETS
from twoscale._progress import report

if TYPE_CHECKING:
    TargetName = str
else:
    TargetName = Literal[tuple(VECTOR_TARGETS)]

__all__ = ["compile_command"]

_TARGET_HELP = "; ".join(f'"{target.name}" for {target.promise}' for target in VECTOR_TARGETS.values())


def compile_command(
    network: File,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="PATH.so")],
    target: Annotated[TargetName, tyro.conf.arg(help=_TARGET_HELP)] = "native",
    json: bool = False,
) -> None:
    """Compile an integer network into a shared library and a C header, for programs that run where there is no
    compiler.

    In Python, twoscale.load_compiled("net.so") loads the library and needs only NumPy. The header documents the
    functions for C. Both files contain the network's fingerprint.

    Args:
        network: Integer network (.onnx or .tflite).
        out: Library to write; the header is written beside it.
        json: Print JSON.
    """
    from twoscale._formats import load
    from twoscale._runtimes.saving import save_compiled

    loaded = load(require_integer_file(network))
    require_on_grid(loaded, network)
    report("compiling", 0, None)
    saved = save_compiled(loaded, out, target=target)
    if json:
        print_json(saved)
        return
    needs = (
        f"needs a CPU with {', '.join(saved.features)}" if saved.features else "runs on any CPU of this architecture"
    )
    print_line(f"Wrote {saved.library} ({saved.library_bytes:,} bytes, {needs}) and {saved.header}")
    print_line(f"Fingerprint: {saved.fingerprint}")
