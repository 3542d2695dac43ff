"""The README's picture: weights, activations and accuracy in one row, from the lab's results.json.

    python -m twoscale._lab.picture lab/results.json docs

writes lab-light.svg and lab-dark.svg, which a ``<picture>`` element chooses between.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twoscale._display.statistics import values_histogram
from twoscale._files import read_record, write_text
from twoscale._lab.plots import stages_plot
from twoscale._lab.records import LabResults
from twoscale._page.charts import DARK, LIGHT, Drawing, side_by_side
from twoscale.errors import TwoscaleError

_WIDTH = 272  # three of them fit a README's column without shrinking

__all__ = ["picture", "write_picture"]


def picture(results: LabResults) -> Drawing:
    """Draw the network with the most stages: its largest weights, their layer's output, and the stages.

    Raises:
        TwoscaleError: no network of ``results`` has weights, activations and stages.
    """
    whole = [one for one in results.networks if one.weights and one.activations and one.stages]
    if not whole:
        raise TwoscaleError("there is nothing to draw: no network of these results has weights, activations and stages")
    network = max(whole, key=lambda one: len(one.stages) + len(one.bias_stages))
    weight = max(network.weights, key=lambda one: one.count)
    layer = weight.name.removesuffix(".weight")
    activation = next((one for one in network.activations if one.name == layer), network.activations[-1])
    drawings = [
        values_histogram(weight, log=False, title=f"Weights of {layer}", width=_WIDTH),
        values_histogram(activation, log=True, title=f"Outputs of {activation.name}", width=_WIDTH),
        stages_plot(network, results.schemes, width=_WIDTH, row_height=28),
    ]
    label = f"{drawings[0].label}. {drawings[1].label}. {drawings[2].label}."
    return side_by_side(drawings, label)


def write_picture(results: LabResults, folder: Path) -> tuple[Path, Path]:
    """Write lab-light.svg and lab-dark.svg into ``folder``, transparent, and return their paths.

    Raises:
        TwoscaleError: there is nothing to draw, or the folder cannot be written.
    """
    drawing = picture(results)
    light, dark = folder / "lab-light.svg", folder / "lab-dark.svg"
    write_text(light, drawing.standalone(LIGHT))
    write_text(dark, drawing.standalone(DARK))
    return light, dark


def main(arguments: list[str]) -> int:
    """Write the picture of the results file ``arguments[0]`` into the folder ``arguments[1]``."""
    if len(arguments) != 2:
        print("usage: python -m twoscale._lab.picture RESULTS.json FOLDER", file=sys.stderr)
        return 2
    try:
        results = read_record(Path(arguments[0]), LabResults)
        for path in write_picture(results, Path(arguments[1])):
            print(path)
    except TwoscaleError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
