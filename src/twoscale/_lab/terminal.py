"""The lab's summary in a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from twoscale._lab.records import LabResults
from twoscale._page.numbers import MISSING, count, fixed, percent

__all__ = ["summary_table"]


def summary_table(results: LabResults) -> Table:
    """Return every stage of every network as a table for ``rich``; it fits 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{results.data}: {count(results.test_samples)} test images"),
        title_style="bold",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("stage", max_width=33, overflow="fold")
    table.add_column("scheme", max_width=12, overflow="fold")
    for head in ("top-1\n%", "agree\n%", "SQNR\ndB", "integers\ndiffer"):
        table.add_column(head, justify="right", no_wrap=True)
    for index, network in enumerate(results.networks):
        if index:
            table.add_section()
        table.add_row(Text(network.name, style="bold"))
        for stage in network.stages:
            table.add_row(
                Text(f"  {stage.title}"),
                Text(MISSING if stage.stage == "float" else stage.scheme),
                percent(stage.top1),
                percent(stage.agreement),
                fixed(stage.sqnr_db, 1),
                count(stage.mismatches),
            )
    return table
