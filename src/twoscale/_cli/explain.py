"""``twoscale explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from twoscale._cli.common import (
    File,
    ModelArgs,
    ModelName,
    console,
    load_model,
    print_json,
    recorded,
    require_integer_file,
)
from twoscale._cli.export import require_on_grid
from twoscale._progress import report
from twoscale.errors import ConfigurationError, ExecutorError

__all__ = ["explain_command"]


def explain_command(
    network: File,
    image: Annotated[Path, tyro.conf.arg(metavar="PICTURE")],
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="PAGE.html")],
    float: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    model: ModelName = None,
    model_args: ModelArgs = None,
    json: bool = False,
) -> None:
    """Write a self-contained page in which you follow the integers of an integer network for one picture.

    It shows the feature maps of every layer. Click one of their pixels to see its window, weights and products, the
    accumulator, the multiplier, rounding and the clamp as a worked sum. With clang and wasm-ld installed, the
    page contains the network as WebAssembly, so that you can draw on the picture or choose another.

    Args:
        network: Integer network (.onnx or .tflite) that records how pixels are normalized.
        image: Picture (PNG, JPEG, GIF, BMP, WebP, TIFF or PPM).
        out: Page to write.
        float: Weights of the float network, or the network as float .onnx. Adds its values, and the signal-to-noise
            ratio of each layer.
        model: Model of these weights, where the file does not record it: a name, or FILE.py:CLASS for your own, whose
            code then runs.
        model_args: Options of that model.
        json: Print JSON.
    """
    from twoscale._display.explanation import compiled_for_page, explanation_page, normalized
    from twoscale._files import write_text
    from twoscale._formats import load
    from twoscale._ir.preprocessing import picture_steps
    from twoscale._verification.comparison import float_values
    from twoscale.data import Preprocessing
    from twoscale.data._registry import class_names

    loaded = load(require_integer_file(network))
    require_on_grid(loaded, network)
    if out.is_dir():
        raise ConfigurationError(f"{out} is a folder; expected a file to write the page to")
    known = recorded(loaded)
    shape = loaded.inputs[0].output.shape
    if len(shape) != 3 or shape[0] not in (1, 3, 4):
        raise ConfigurationError(f"{loaded.name} takes no pictures: its input is {shape}; expected 1, 3 or 4 channels")
    steps: Any = picture_steps(loaded.metadata)
    if steps is None or steps.shape != shape:
        steps = Preprocessing(size=shape[1:], channels=shape[0])  # type: ignore[arg-type]
    else:
        steps = Preprocessing(**{name: getattr(steps, name) for name in steps.__dataclass_fields__})
    pixels = steps.read(image)
    real = None
    if float is not None:
        report("running the float network", 0, None)
        real = float_values(loaded, load_model(float, model, model_args), normalized(loaded, pixels)[None])
        real = {name: values[0] for name, values in real.items()}
    report("compiling", 0, None)
    modules, missing = None, ""
    try:
        modules = compiled_for_page(loaded)
    except ExecutorError as error:
        missing = str(error)
    classes = known.classes or (class_names(known.data) if known.data else None)
    write_text(out, explanation_page(loaded, pixels, modules=modules, real=real, classes=classes))
    if json:
        print_json({"file": str(out), "fingerprint": loaded.fingerprint, "runs": modules is not None})
        return
    printer = console()
    printer.print(f"Wrote {out} ({out.stat().st_size:,} bytes)", markup=False, soft_wrap=True)
    if missing:
        printer.print(f"The page shows this picture only: {missing}", markup=False, soft_wrap=True)
