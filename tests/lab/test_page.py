from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from twoscale._calibration.summaries import Histogram
from twoscale._files import write_record
from twoscale._lab.page import render_report, stages_html, write_plots, write_report
from twoscale._lab.picture import main, write_picture
from twoscale._lab.plots import stages_plot
from twoscale._lab.records import LabNetwork, LabResults, StageResult
from twoscale.errors import TwoscaleError

Expected = str | int | float | bool | None | tuple[float, ...]


class Page(HTMLParser):
    """Tables by caption as rows of cell texts, without remarks; tags and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._caption = ""
        self._rows: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in ("meta", "link", "br"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass
        if tag == "table":
            assert self._caption not in self.tables, f"two tables are called {self._caption}"
            self.tables[self._caption] = self._rows[1:]

    def handle_data(self, data: str) -> None:
        if "caption" in self._inside:
            self._caption += data
        elif ("td" in self._inside or "th" in self._inside) and "small" not in self._inside:
            self._rows[-1][-1] += data


def _agrees(text: str, value: Expected) -> bool:
    """Whether a cell says ``value``: whole numbers exactly, others to half of the last digit shown."""
    if value is None:
        return text == "–"
    if isinstance(value, bool):
        return text == ("yes" if value else "no")
    if isinstance(value, str):
        return text == value
    plain = text.replace("−", "-").replace(",", "")
    if isinstance(value, tuple):
        texts = text.split(" to ")
        return len(texts) == len(value) and all(_agrees(*pair) for pair in zip(texts, value, strict=True))
    if isinstance(value, int):
        return plain == str(value)
    mantissa, _, exponent = plain.partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return math.isclose(float(plain), value, rel_tol=0, abs_tol=0.5000001 * 10**-decimals)


def _ends(values: Sequence[float]) -> Expected:
    """Return what a cell shows of several numbers: nothing, the only one, or the smallest and the largest."""
    if not values or len(set(values)) == 1:
        return next(iter(values), None)
    return min(values), max(values)


def _pairs(values: dict[str, str]) -> list[list[Expected]]:
    return [[name, value] for name, value in values.items()]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _stage_rows(stages: Sequence[StageResult]) -> list[list[Expected]]:
    base = next(stage.top1 for stage in stages if stage.stage == "float")
    return [
        [
            stage.title,
            None if stage.stage == "float" else stage.scheme,
            100 * stage.top1,
            None if stage.stage == "float" else 100 * stage.top1 - 100 * base,
            _percent(stage.agreement),
            stage.sqnr_db,
            stage.mismatches,
        ]
        for stage in stages
    ]


def _network_tables(network: LabNetwork) -> dict[str, list[list[Expected]]]:
    name, stages = network.name, network.stages

    def of(*keys: str) -> list[list[Expected]]:
        return _stage_rows([stage for stage in stages if stage.stage in keys])

    expected: dict[str, list[list[Expected]]] = {
        f"{name}, {network.parameters:,} parameters in float: accuracy at each stage": _stage_rows(stages),
        f"Accuracy of {name} with only the weights quantized": of("float", "weights"),
        f"Accuracy of {name} with weights and activations quantized": of("float", "activations"),
    }
    base = next(stage for stage in stages if stage.stage == "float")
    if network.bias_stages:
        last = [stage for stage in stages if stage.stage == "integer"]
        expected[f"{name}: right and wrong biases"] = _stage_rows([base, *network.bias_stages, *last])
    expected[f"Range methods for the weights of {name}"] = [
        [
            one.method,
            100 * one.clipped,
            one.sqnr_db,
            one.logit_sqnr_db,
            100 * one.top1,
            100 * (one.top1 - base.top1),
            100 * one.agreement,
        ]
        for one in network.methods
    ]
    expected[f"{name}: all integer, by bits of the weights"] = [
        [one.bits, one.scheme, 100 * one.top1, 100 * (one.top1 - base.top1), 100 * one.agreement, one.sqnr_db]
        for one in network.bits
    ]
    pooled = {one.name: one for one in network.pooled}
    activations = [
        shown
        for one in network.activations
        for shown in (
            [
                replace(one, name=f"{one.name} before pooling"),
                replace(pooled[one.name], name=f"{one.name} after pooling"),
            ]
            if one.name in pooled
            else [one]
        )
    ]
    for kind, tensors in (("Weights", network.weights), ("Activations", activations)):
        expected[f"{kind} of {name}"] = [
            [
                one.name,
                one.count,
                one.mean,
                one.std,
                one.min,
                one.max,
                one.max - one.min,
                one.mean - 3 * one.std,
                one.mean + 3 * one.std,
                *([100 * one.zeros / one.count] if kind == "Activations" else []),
            ]
            for one in tensors
        ]
    for scheme, ranges in network.ranges.items():
        noise = {one.layer: one for one in network.noise[scheme]}
        expected[f"Weights of {name} in integers, scheme “{scheme}”"] = [
            [
                one.name,
                len(one.scales),
                _ends(one.scales),
                (one.lo, one.hi),
                (one.seen_lo, one.seen_hi),
                one.method,
                one.sqnr_db,
                noise[one.name].output_db,
                *(
                    [noise[one.name].nearest_weights_db, noise[one.name].nearest_output_db]
                    if scheme == "default"
                    else []
                ),
            ]
            for one in ranges
            if one.kind == "weight"
        ]
        saturated = {layer.name: layer.saturated for layer in network.verify[scheme].layers}
        expected[f"Activations of {name} in integers, scheme “{scheme}”"] = [
            [
                one.name,
                one.scales[0],
                one.zero_point,
                (one.lo, one.hi),
                (one.seen_lo, one.seen_hi),
                _percent(saturated[one.name]),
                one.sqnr_db,
                one.method,
            ]
            for one in ranges
            if one.kind != "weight"
        ]
        expected[f"Scales of {name}, scheme “{scheme}”: input, weights, output"] = [
            [
                one.layer,
                one.x_scale,
                _ends(one.weight_scales),
                one.y_scale,
                _ends(one.multipliers),
                _ends(one.numerators),
            ]
            for one in network.scales[scheme]
        ]
        one = network.worked[scheme]
        product = one.accumulator * one.multiplier
        expected[f"{name}, scheme “{scheme}”: one output of {one.layer}, by hand"] = [
            ["Test image", one.image],
            ["Output (channel, row, column)", ", ".join(map(str, one.index))],
            ["Input scale s_x", one.x_scale],
            ["Weight scale s_w", one.weight_scale],
            ["Output scale s_y", one.y_scale],
            ["M = s_x·s_w/s_y", one.multiplier],
            ["M as a whole number of 65536ths", f"{one.numerator} / 65,536" if one.numerator else None],
            ["Bias, in units of s_x·s_w", one.bias],
            ["Accumulator a: bias and products", one.accumulator],
            ["a · M", product],
            ["Rounded to the nearest integer", round(product)],
            ["Zero point z, added", one.zero_point],
            ["Integers of the output", (one.lo, one.hi)],
            ["Output integer q", one.output],
            ["q stands for s_y · (q − z)", one.y_scale * (one.output - one.zero_point)],
            ["The float network computes", one.real],
        ]
        if any(any(one.integers) or any(one.reals) for one in network.biases[scheme]):
            expected[f"Biases of {name}, scheme “{scheme}”"] = [
                [
                    one.layer,
                    len(one.integers),
                    _ends(one.reals),
                    _ends(one.units),
                    _ends(one.integers),
                    100 * max(map(abs, one.integers)) / 2**31,
                ]
                for one in network.biases[scheme]
            ]
    expected[f"{name}: executors compared"] = [
        [
            scheme,
            ", ".join(check.executors),
            check.on_grid,
            check.samples,
            check.compared,
            check.mismatches,
            _percent(check.top1),
            _percent(check.agreement),
            check.sqnr_db,
        ]
        for scheme, check in network.verify.items()
    ]
    for scheme, check in network.verify.items():
        expected[f"{name}, scheme “{scheme}”: each layer"] = [
            [
                layer.name,
                layer.op,
                layer.values,
                layer.mismatches,
                layer.sqnr_db,
                layer.accumulator_bound,
                layer.accumulator_bound and math.log2(layer.accumulator_bound),
                layer.float32_exact,
                layer.pair_saturation_safe,
                _percent(layer.saturated),
            ]
            for layer in check.layers
        ]
    expected[f"Files of {name}"] = _pairs(network.files)
    return expected


def _expected(results: LabResults) -> dict[str, list[list[Expected]]]:
    environment = results.environment
    expected: dict[str, list[list[Expected]]] = {
        "Data": [
            ["Data set", results.data],
            ["Training images", results.train_samples],
            ["Test images", results.test_samples],
            ["Calibration images", results.calibration_samples],
            ["Seed", results.seed],
        ],
        "Training recipe": [[name, None if v is None else str(v)] for name, v in results.recipe.items()],
        "Machine and versions": [
            ["Date (UTC)", environment.date],
            ["Processor", environment.machine],
            ["Cores", environment.cores],
            ["Python", environment.python],
            *_pairs(environment.versions),
        ],
        "Time": [[name, seconds] for name, seconds in results.seconds.items()],
    }
    for network in results.networks:
        expected |= _network_tables(network)
    return expected


def _differences(html: str, results: LabResults) -> list[str]:
    tables, expected = Page(html).tables, _expected(results)
    wrong = [f"tables: {sorted(set(tables) ^ set(expected))}"] if set(tables) != set(expected) else []
    for caption in set(tables) & set(expected):
        if [len(row) for row in tables[caption]] != [len(row) for row in expected[caption]]:
            wrong.append(f"{caption}: other rows")
            continue
        wrong += [
            f"{caption}: {text} for {value}"
            for row, values in zip(tables[caption], expected[caption], strict=True)
            for text, value in zip(row, values, strict=True)
            if not _agrees(text, value)
        ]
    return wrong


def test_every_number_in_the_tables_is_the_record_s(results: LabResults) -> None:
    assert _differences(render_report(results), results) == []


def test_the_comparison_would_see_a_wrong_number(results: LabResults) -> None:
    network = results.networks[0]
    stages = (*network.stages[:-1], replace(network.stages[-1], top1=network.stages[-1].top1 + 0.0001))
    other = replace(results, networks=(replace(network, stages=stages), *results.networks[1:]))
    assert len(_differences(render_report(other), results)) == 2  # the accuracy and its change


def test_each_network_s_own_recipe_is_a_column(results: LabResults) -> None:
    recipe = {"net": {"lr": 0.001, "nesterov": False}, "net-with-bias": {"lr": 0.002, "seed": [1, 2]}}
    rows = Page(render_report(replace(results, recipe=recipe))).tables["Training recipe"]
    assert rows == [["lr", "0.001", "0.002"], ["nesterov", "no", "–"], ["seed", "–", "1, 2"]]


def test_missing_values_are_dashes(results: LabResults) -> None:
    network = results.networks[0]
    stages = tuple(replace(one, agreement=None, sqnr_db=None, mismatches=None) for one in network.stages)
    check = network.verify["default"]
    layers = tuple(
        replace(one, sqnr_db=None, accumulator_bound=None, float32_exact=None, saturated=None) for one in check.layers
    )
    bare = replace(
        network,
        stages=stages,
        verify={
            "course": replace(network.verify["course"], first_divergence=None),
            "default": replace(check, top1=None, agreement=None, sqnr_db=None, layers=layers),
        },
        ranges={
            scheme: tuple(replace(one, sqnr_db=None, histogram=None) for one in ranges)
            for scheme, ranges in network.ranges.items()
        },
    )
    html = render_report(replace(results, networks=(bare,)))
    assert _differences(html, replace(results, networks=(bare,))) == []
    for word in ("None", "nan", "inf<"):
        assert word not in html


def test_an_almost_empty_record_is_a_page(results: LabResults) -> None:
    nothing = LabNetwork("Net", 0, (), (), (), {}, (), {}, {})
    html = render_report(replace(results, networks=(nothing,), recipe={}, seconds={}, test_samples=0))
    assert "No network was run all in integers." in html
    assert "No network of this run has a bias in float, so no wrong bias was measured." in html
    assert "No network, from float" in render_report(replace(results, networks=()))


def test_the_text_follows_the_schemes_and_rows_of_the_record(results: LabResults) -> None:
    """A page without the rows that a paragraph explains does not have the paragraph."""
    half_way = "In the rows “integer weights only”"
    assert half_way in render_report(results)
    network = results.networks[1]
    rows = tuple(row for row in network.bias_stages if not row.stage.startswith("weights"))
    html = render_report(replace(results, networks=(replace(network, bias_stages=rows),)))
    assert half_way not in html
    assert "no wrong bias was measured" not in html


def test_constant_tensors_are_drawn(results: LabResults) -> None:
    network = results.networks[0]
    zero = replace(
        network.weights[0], mean=0.0, std=0.0, min=0.0, max=0.0, zeros=450, histogram=Histogram(0.0, 0.0, (450,))
    )
    odd = replace(network, weights=(zero,), activations=(replace(zero, kind="activation", count=0),))
    html = render_report(replace(results, networks=(odd,)))
    assert "nan" not in html


def test_names_are_escaped_everywhere(results: LabResults) -> None:
    evil = '<script>alert("1")</script>'
    network = results.networks[1]
    renamed = replace(
        network,
        name=evil,
        weights=tuple(replace(one, name=evil) for one in network.weights),
        activations=tuple(replace(one, name=evil) for one in network.activations),
        ranges={evil: tuple(replace(one, name=evil, method=evil) for one in network.ranges["default"])},
        stages=tuple(
            replace(one, network=evil, title=evil, note=evil, scheme=evil if one.scheme == "default" else one.scheme)
            for one in network.stages
        ),
        verify={evil: replace(network.verify["course"], scheme=evil, executors=(evil,), first_divergence=evil)},
        files={evil: "javascript:alert(1)", "up": "//example.org/x"},
    )
    page = replace(results, data=evil, networks=(renamed,), recipe={evil: evil}, seconds={evil: 1.0})
    html = render_report(page)
    assert "<script" not in html
    parsed = Page(html)
    links = [value or "" for tag, name, value in parsed.attributes if (tag, name) == ("a", "href")]
    assert "./javascript%3Aalert%281%29" in links
    assert "./example.org/x" in links
    assert "<script" not in stages_html(renamed.stages, evil)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_page_is_whole_and_asks_for_nothing(results: LabResults) -> None:
    html = render_report(results)
    page = Page(html)
    assert len(html) < 2_000_000
    assert {"iframe", "object", "img"}.isdisjoint(page.tags)
    explorers = sum(len(network.clips) for network in results.networks)
    assert [one for one in page.attributes if one[0] == "script"] == [
        ("script", "type", "application/json")
    ] * explorers
    assert page.tags.count("script") == explorers + 1
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "name", "viewport") in page.attributes
    assert ("meta", "content", "light dark") in page.attributes
    assert "url(" not in html
    assert "@import" not in html
    addresses = [value or "" for _, name, value in page.attributes if name in ("href", "src")]
    assert [address for address in addresses if not address.startswith(("#", "./", "data:,"))] == []
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert {address[1:] for address in addresses if address.startswith("#")} <= targets


def test_stages_are_drawn_in_the_order_of_the_lab(results: LabResults) -> None:
    network = results.networks[1]
    shuffled = replace(network, stages=network.stages[:1] + network.stages[:0:-1])
    drawing = stages_plot(shuffled, ("default", "course"))
    rows = re.findall(r'class="end row">(.*?)<', drawing.body)
    assert rows == ["weights", "+ activations", "all integer"]


def test_every_chart_says_what_it_shows(results: LabResults) -> None:
    svgs = re.findall(r"<svg.*?</svg>", render_report(results), re.DOTALL)
    assert len(svgs) > 40
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20


def test_the_same_record_gives_the_same_bytes(results: LabResults, tmp_path: Path) -> None:
    first, second = write_report(results, tmp_path / "a"), write_report(results, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_written_files(results: LabResults, tmp_path: Path) -> None:
    page, *plots = write_report(results, tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text() == render_report(results)
    assert len(plots) == len(set(plots)) == len(re.findall("<svg", render_report(results)))
    assert sorted(plots) == sorted((tmp_path / "plots").iterdir())
    assert tmp_path / "plots" / "netwithbias-weight-conv1.svg" in plots
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_names_that_look_alike_get_files_of_their_own(results: LabResults, tmp_path: Path) -> None:
    network = results.networks[0]
    alike = (replace(network, name="a/b"), replace(network, name="A.B"), replace(network, name="../.."))
    paths = write_plots(replace(results, networks=alike), tmp_path)
    assert len(paths) == len(set(paths)) == len(list(tmp_path.iterdir()))


def test_a_folder_that_cannot_be_written(results: LabResults, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TwoscaleError, match=r"cannot write .*report\.html: .*nothing was changed"):
        write_report(results, tmp_path / "file")


def test_links_lead_to_the_files(results: LabResults) -> None:
    page = Page(render_report(results))
    links = {unquote(v or "") for tag, name, v in page.attributes if (tag, name) == ("a", "href")}
    for network in results.networks:
        assert {f"./{file}" for file in network.files.values()} <= links


def test_stages_for_a_notebook(results: LabResults) -> None:
    html = stages_html(results.networks[0].stages)
    rows = next(iter(Page(html).tables.values()))
    assert rows[0] == ["float32", "–", "54.21", "–", "–", "–", "–"]
    assert rows[-1] == ["all integer", "default", "54.19", "−0.02", "98.83", "35.4", "0"]
    assert "color" not in html  # a notebook has its own
    both = stages_html([stage for network in results.networks for stage in network.stages], "Both")
    assert Page(both).tables["Both"][-1][:2] == ["NetWithBias", "all integer"]
    assert stages_html([]).startswith("<table")


def test_the_readme_picture(results: LabResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "results.json", results)
    assert main([str(tmp_path / "results.json"), str(tmp_path / "docs")]) == 0
    light, dark = (tmp_path / "docs" / f"lab-{mode}.svg" for mode in ("light", "dark"))
    assert capsys.readouterr().out == f"{light}\n{dark}\n"
    assert "prefers-color-scheme" not in light.read_text()
    texts = {text.text for text in ElementTree.parse(dark).iter("{http://www.w3.org/2000/svg}text")}
    assert {"Weights of fc1", "Outputs of fc1", "Top-1 by stage", "float 54.68"} <= texts


def test_the_readme_picture_s_errors(results: LabResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m twoscale._lab.picture RESULTS.json FOLDER" in capsys.readouterr().err
    assert main([str(tmp_path / "none.json"), str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err
    with pytest.raises(TwoscaleError, match="there is nothing to draw: no network of these results has weights"):
        write_picture(replace(results, networks=()), tmp_path)


def test_the_report_needs_no_torch() -> None:
    code = "import sys, twoscale._lab, twoscale._lab.picture; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
