"""README, documents and notebook: their commands run, the files they name exist, and their figures are recorded."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, lab_answers, low_bits, packed_weights
from benchmarks.engine import Results, table
from benchmarks.small_ram import Costs
from tests import sweep
from tests.test_imports import LAYERS
from twoscale._cli import main
from twoscale._cli.verbs import VERBS
from twoscale._codegen.targets import TARGETS
from twoscale._environment import VERSION
from twoscale._files import read_record
from twoscale._formats import FORMS
from twoscale._lab.records import LabResults
from twoscale._page.numbers import MISSING, count, fixed, percent

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")])
RECORD = ROOT / "docs" / "lab-cifar10.json"
NOTEBOOK = ROOT / "examples" / "quantize.ipynb"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the words of every twoscale command in a document's shell blocks."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [found[1:] for found in words if found and Path(found[0]).name == "twoscale"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        yield tmp_path
    finally:
        os.chdir(before)


def run_python(text: str, name: str) -> None:
    """Run a document's Python blocks, one after the other in one namespace."""
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks(text, "python"), 1):
        exec(compile(block, f"<{name}, block {number}>", "exec"), namespace)


def train(*, epochs: int) -> None:
    main(["train", "net", "--epochs", str(epochs), "--out", "runs/net"])


OWN_MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))
"""


@pytest.fixture
def own(folder: Path) -> Iterator[None]:
    """What README's commands expect of a user: mymodel.py and a folder of pictures."""
    (folder / "mymodel.py").write_text(OWN_MODEL)
    generator = np.random.default_rng(1)
    for name, shade in (("rose", 60), ("tulip", 180)):
        (folder / "flowers" / name).mkdir(parents=True)
        for i in range(20):
            pixels = generator.normal(shade, 40, (70 + i, 90, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "flowers" / name / f"{i}.jpg")
    search_path = list(sys.path)
    yield
    sys.path[:] = search_path
    sys.modules.pop("twoscale_user_mymodel", None)


@pytest.mark.usefixtures("own")
def test_readme_commands_and_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    for words in commands(README):
        ran.append(words[0])
        if "cifar10" in words:
            continue  # takes minutes; its options are checked below
        if words[0] == "train":
            words += ["--epochs", "2"]
        if words[0] == "quantize":
            words += ["--calibration-images", "100"]
        main(words)
    assert {"lab", "train", "inspect", "quantize", "verify", "export"} <= set(ran)
    assert "0 of 4,163,760 integers differ" in capsys.readouterr().out
    run_python(README, "README.md")
    assert "0 differing integers, top-1 " in capsys.readouterr().out


@pytest.mark.usefixtures("own")
def test_own_model_example(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = ROOT / "examples" / "own_model"
    (folder / "mymodel.py").write_text((example / "mymodel.py").read_text())
    for words in commands((example / "README.md").read_text()):
        main(words)
    printed = capsys.readouterr().out
    assert "test images of" in printed
    assert "flowers-c/flowers.h is of the network in flowers.verify.json: 0 of" in printed


def test_readme_library_is_ten_lines() -> None:
    [block] = blocks(README, "python")
    lines = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_accepted(document: Path) -> None:
    import importlib

    from twoscale._cli.parsing import bind

    for words in commands(document.read_text()):
        verb = next(name for name in VERBS if words[: len(name.split())] == name.split())
        module, function = VERBS[verb].function.split(":")
        bind(getattr(importlib.import_module(module), function), verb, words[len(verb.split()) :])


@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute under load: --sweep all runs it")
def test_quantization_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(epochs=2)
    capsys.readouterr()
    run_python((ROOT / "docs" / "quantization.md").read_text(), "quantization.md")
    printed = capsys.readouterr().out
    assert "0 of 4,163,760 integers differ" in printed
    assert "percentile-99.9" in printed


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^ *make ([\w-]+)", README, re.MULTILINE))))
def test_make_targets_are_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    targets = re.findall(r"\]\(([^)]+)\)|(?:srcset|src|href)=\"([^\"]+)\"", text)
    for target in (one or other for one, other in targets):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_are_there(document: Path) -> None:
    for name in re.findall(r"`((?:src|tests|docs|examples|benchmarks|\.ci)/[\w./*-]*)`", document.read_text()):
        assert list(ROOT.glob(name.rstrip("/"))), f"{document.name} names {name}"


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_architecture_describes_every_package_in_layer_order() -> None:
    described = [name for line in re.findall(r"^(\*\*`.*)$", ARCHITECTURE, re.MULTILINE) for name in bold_names(line)]
    assert described == [*LAYERS, "twoscale/__init__.py"]


def bold_names(line: str) -> list[str]:
    """Return the names at the start of a paragraph: a and b of "**`a`**, **`b`** are ..."."""
    [start] = re.findall(r"^(?:\*\*`[\w./]+`\*\*(?:, | and )?)+", line)
    return re.findall(r"`([\w./]+)`", start)


@pytest.mark.parametrize("walk", ["A tensor, from the model to C", "A time, from a step to the page"])
def test_a_walk_visits_each_file_once(walk: str) -> None:
    [text] = re.findall(rf"^## {walk}$(.*?)^## ", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    steps = re.findall(r"^(\d+)\. `(src/[\w/.]+)`: ", text, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == len({file for _, file in steps}) >= 10


NAMED_FILE = re.compile(r"`([\w/.-]+(?:\.(?:py|md|toml|txt)|/))`")


def missing_files(text: str) -> list[str]:
    """Return the files and folders that a text names and that are not there.

    A name without a folder stands for a file below the package that its paragraph describes, or below the folder of
    the path before it.
    """
    missing = []
    for block in text.split("\n\n"):
        folder = ROOT / "src" / "twoscale"
        if package := re.match(r"\*\*`(\w+)`", block):
            folder = folder / package[1]
        for name in NAMED_FILE.findall(block):
            if "/" in name.rstrip("/") or (ROOT / name).exists():
                found = (ROOT / name).exists() or (ROOT / "src" / name).exists()
                folder = (ROOT / name).parent if found else folder
            else:
                found = any(folder.rglob(name.rstrip("/")))
            if not found:
                missing.append(name)
    return missing


def test_files_that_the_architecture_names_are_there() -> None:
    assert len(NAMED_FILE.findall(ARCHITECTURE)) > 60
    assert missing_files(ARCHITECTURE) == []
    for name in ("`range_tuning.py`", "`targets.py`", "`float_module.py`", "`src/twoscale/_page/document.py`"):
        assert missing_files(ARCHITECTURE.replace(name, name.replace(".py", "s.py"))) != [], name


ADDING = re.findall(r"^\| (.+?) \| (.+?) \| ?(.*?) ?\|$", ARCHITECTURE.partition("## Adding things")[2], re.MULTILINE)[
    2:
]


@pytest.mark.parametrize(("what", "where", "registered"), ADDING, ids=[what for what, *_ in ADDING])
def test_what_a_recipe_names_is_in_its_files(what: str, where: str, registered: str) -> None:
    for cell in (where, registered):
        named = re.findall(r"`([^`]+)`", cell)
        paths = [ROOT / name for name in named if "/" in name or (ROOT / name).exists()]
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
        for name in (name for name in named if ROOT / name not in paths):
            assert any(re.search(rf"\b{name}\b", file.read_text()) for file in files), f"{what}: no {name} in {paths}"


def test_documents_list_every_target_and_every_saved_form() -> None:
    """The tables of docs/c.md and docs/onnx.md have one row for each entry of the registries."""
    assert first_cells((ROOT / "docs" / "c.md").read_text(), "target") == list(TARGETS)
    assert first_cells((ROOT / "docs" / "onnx.md").read_text(), "form") == list(FORMS)


def first_cells(text: str, heading: str) -> list[str]:
    """Return the names in the first column of the table with this heading."""
    [rows] = re.findall(rf"^\| {heading} \|.*\n\|[-:| ]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return re.findall(r"^\| `([\w-]+)`", rows, re.MULTILINE)


def accuracy_table(results: LabResults) -> list[str]:
    """Return the README's table: every stage of both networks, and wrong biases in the course's scheme."""
    lines = [
        "| network | stage | scheme | top-1 | agreement | logit SQNR | integers that differ |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for network in results.networks:
        wrong = [x for x in network.bias_stages if x.scheme == "course" and x.stage in ("unscaled", "stretched")]
        for stage in (*network.stages, *wrong):
            agreement = percent(stage.agreement)
            cells = [
                stage.network,
                stage.title,
                MISSING if stage.stage == "float" else stage.scheme,
                f"{percent(stage.top1)} %",
                agreement if agreement == MISSING else f"{agreement} %",
                MISSING if stage.sqnr_db is None else f"{fixed(stage.sqnr_db, 1)} dB",
                count(stage.mismatches),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def test_readme_table_is_the_record() -> None:
    results = read_record(RECORD, LabResults)
    table = "\n".join(accuracy_table(results))
    assert table in README, f"the README's table should be:\n{table}"
    machine = f"{results.environment.machine}, {results.environment.cores} cores"
    assert machine in README
    assert f"{results.test_samples:,} test images" in README


def test_readme_speeds_are_the_record() -> None:
    results = read_record(ROOT / "benchmarks" / "results" / "engine.json", Results)
    speeds = table(results)
    assert speeds in README, f"the README's table should be:\n{speeds}"
    assert not [case for case in results.cases if case.mismatches]


def test_what_choices_are_worth_is_the_record() -> None:
    choices = accuracy.table(read_record(accuracy.RECORD, accuracy.Record))
    assert choices in (ROOT / "docs" / "accuracy.md").read_text(), f"the table should be:\n{choices}"


def test_what_bits_cost_is_the_record() -> None:
    rows = low_bits.recorded()
    bits = low_bits.table(rows)
    assert bits in (ROOT / "docs" / "accuracy.md").read_text(), f"the table should be:\n{bits}"
    assert not [row for row in rows if row.differing or not row.compared]


def test_times_of_packed_weights_are_the_record() -> None:
    record, text = packed_weights.recorded(), (ROOT / "docs" / "engine.md").read_text()
    for expected in (packed_weights.timed_table(record, 1), packed_weights.counted_table(record)):
        assert expected in text, f"the table should be:\n{expected}"


def test_small_ram_figures_are_the_record() -> None:
    text = (ROOT / "docs" / "c.md").read_text()
    costs = read_record(ROOT / "benchmarks" / "results" / "small_ram.json", Costs).networks
    for cost in costs:
        figures = (cost.portable_arena_bytes, cost.arena_bytes, cost.unshared_bytes)
        assert " | ".join(f"{value:,} bytes" for value in figures) in text, cost.network
    assert ", ".join(f"{cost.ratio:.2f}" for cost in costs) in text


def test_qdq_figures_are_the_record() -> None:
    text = (ROOT / "docs" / "onnx.md").read_text()
    for row in json.loads((ROOT / "benchmarks" / "results" / "qdq.json").read_text())["rows"]:
        counts = [f"{row[key]:,}" for key in ("integers_compared", "integers_that_differ", "differ_by_more_than_1")]
        figures = [row["optimizations"], *counts, f"{row['logit_sqnr_db']:.1f} dB", str(row["classes_that_differ"])]
        assert " | ".join(figures) in text


def test_readme_picture_is_of_the_record(tmp_path: Path) -> None:
    from twoscale._lab.picture import write_picture

    for path in write_picture(read_record(RECORD, LabResults), tmp_path):
        assert path.read_text() == (ROOT / "docs" / path.name).read_text(), "renew it: python -m benchmarks.lab_answers"


def test_the_lab_sheets_are_answered_from_the_records() -> None:
    lab = read_record(RECORD, LabResults)
    study, resnet = (json.loads(path.read_text())["sentences"] for path in (lab_answers.STUDY, lab_answers.RESNET))
    text = lab_answers.DOCUMENT.read_text()
    assert text == lab_answers.document(lab, study, resnet), "renew it: python -m benchmarks.lab_answers"
    asked = ["Q1", "Q2", "Q3", "Q4", "Q5", "A1", "A2", "A3.1", "A3.2", "A4.1", "A4.2", "A5", "A6", "A7"]
    assert set(asked) <= set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert text.count("\nPublished: ") == text.count("\nCommand: `twoscale ") == len(asked) + 1
    # Other numbers give another document.
    [first, *others] = lab.networks
    worse = dataclasses.replace(first.methods[0], top1=0.1234)
    changed = dataclasses.replace(first, methods=(worse, *first.methods[1:]))
    other = lab_answers.document(dataclasses.replace(lab, networks=(changed, *others)), study, resnet)
    assert other != text
    assert "| 12.34 |" in other


def test_the_commands_of_the_lab_sheets_are_accepted() -> None:
    import importlib

    from twoscale._cli.parsing import bind

    for question in (*lab_answers.QUANTIZATION, *lab_answers.SCALING):
        _, verb, *words = shlex.split(question.command)
        module, function = VERBS[verb].function.split(":")
        bind(getattr(importlib.import_module(module), function), verb, words)


def test_changelog_has_the_version() -> None:
    [newest, *_] = re.findall(r"^## \[(.*?)\]( - .*)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[0] == "Unreleased" or (newest[0] == VERSION and re.fullmatch(r" - \d{4}-\d\d-\d\d", newest[1]))
    assert f"version: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute: --sweep all runs it")
def test_notebook_runs_in_any_folder(tmp_path: Path) -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"^0 of [\d,]+ integers differ in ONNX Runtime$", printed, re.MULTILINE)


def test_notebook_is_stored_with_what_it_shows() -> None:
    notebook = read_notebook()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert {"text/html", "image/svg+xml"} <= kinds
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(?:home|root|tmp|work)/", json.dumps(shown))
