"""The scaling study that docs/scaling.md quotes, its tables there, and the notebook that reads it: all in one.

    python -m benchmarks.scaling_study [--out DIR] [--resume] [--keep]

Runs `twoscale scale` with its defaults on this machine's processor, the further questions whose numbers the document
has, and the parts of a ResNet-18 study that are not timed: the ledger, the replicas and the sampler. Writes
docs/scaling-study.json, docs/scaling-further.json and docs/scaling-resnet18.json, puts their sentences and tables
between the markers of docs/scaling.md, and runs examples/scaling.ipynb again. It takes about
six minutes; run it on an idle machine. Finished cells are kept in DIR (default: build/scaling-study): after an
interruption, the same command with --resume measures only what is missing. Where the verdict left rounds out, or warns
of load, remove DIR and run it again. --keep measures nothing; it renews the sentences of the recorded numbers, the
document and the notebook.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import nbclient
import nbformat

from benchmarks import lab_answers
from benchmarks.common import RESULTS, markdown
from benchmarks.several_hosts import SeveralHosts, hosts_sentence, hosts_table
from twoscale._files import read_record, write_bytes, write_text
from twoscale.scaling._questions.accuracy import AccuracyAnswer, accuracy_table, rates_table
from twoscale.scaling._questions.answers import plain, read_results, sentences
from twoscale.scaling._questions.batch import batch_table
from twoscale.scaling._questions.breakdown import BreakdownAnswer, kinds_table, layers_table, parts_table
from twoscale.scaling._questions.communication import CommunicationAnswer, arms_table, epochs_table, wire_table
from twoscale.scaling._questions.forecast import ForecastAnswer, forecast_table
from twoscale.scaling._questions.loading import LoadingAnswer, loading_table
from twoscale.scaling._questions.noise import NoiseAnswer, batches_table, noise_table, remedies_table
from twoscale.scaling._questions.optimizers import OptimizersAnswer, optimizers_table
from twoscale.scaling._questions.replicas import ReplicasAnswer, replicas_table
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.speedup import SpeedupAnswer, grid_table, labels_table, speed_table
from twoscale.scaling._questions.strategies import StrategiesAnswer, memory_table, strategies_table
from twoscale.scaling._questions.variants import VariantsAnswer, variants_table
from twoscale.scaling._questions.verdict import VerdictAnswer, causes_table
from twoscale.scaling._questions.what_if import what_if_table, what_ifs
from twoscale.scaling._questions.wire import WireAnswer, ledger_table
from twoscale.scaling._run import run_study, study_config
from twoscale.scaling._study.progress import study_progress

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = DOCS / "scaling.md"
RECORD = DOCS / "scaling-study.json"
RESNET = DOCS / "scaling-resnet18.json"
FURTHER = DOCS / "scaling-further.json"
FURTHER_SECTIONS = ("strategies", "loading", "step", "variants", "optimizers", "noise")
"""Further questions whose numbers docs/scaling.md has: all of them."""
HOSTS = RESULTS / "several_hosts.json"
"""Of benchmarks.several_hosts, which needs root and runs on its own."""
NOTEBOOK = DOCS.parent / "examples" / "scaling.ipynb"


def generated(study: StudyResults, resnet: StudyResults, further: StudyResults) -> dict[str, str]:
    """Return the text between each pair of markers."""
    environment = study.environment
    assert study.loads is not None
    verdict = study.of(VerdictAnswer).verdict
    assert verdict is not None
    forecast, communication = study.of(ForecastAnswer), study.of(CommunicationAnswer)
    assert communication.epoch_samples is not None
    where = (
        f"{environment.machine}, {environment.cores} cores, torch {environment.versions['torch']}; load "
        f"{study.loads[0]:.1f} to {study.loads[1]:.1f} as cells began; {study.seconds:.0f} s in all."
    )
    return {
        "machine": where,
        "verdict": f"> {verdict.sentence}\n\n" + markdown(causes_table(verdict), (0, 1, 2)),
        **{name: f"> {sentence}" for name, sentence in study.sentences.items()},
        "batch-table": markdown(batch_table(study), (0, 1, 2, 3, 4, 6)),
        "grid-table": markdown(grid_table(study.of(SpeedupAnswer).grid), (0, 1, 2, 3, 4)),
        "labels-table": markdown(labels_table()),
        "speedup-table": markdown(speed_table(study), (0, 1, 2, 4, 5, 7, 8)),
        "communication-table": markdown(arms_table(communication.arms), (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        "epoch-communication-table": markdown(
            epochs_table(communication.arms, communication.epoch_samples), tuple(range(8))
        ),
        "wire-table": markdown(wire_table(communication.arms), (0, 1, 2, 3, 4, 5, 6, 7)),
        "what-if-table": markdown(
            what_if_table(what_ifs(communication.arms, verdict.group, verdict.batch_size, verdict.link)),
            (0, 1, 2, 3),
        ),
        "epochs-table": markdown(accuracy_table(study, "epochs"), (0, 1, 3, 4, 6, 7)),
        "rates-table": markdown(rates_table(study.of(AccuracyAnswer).rates), (0, 1, 2, 3)),
        "steps-table": markdown(accuracy_table(study, "steps"), (0, 1, 3, 4, 6, 7)),
        "ledger-table": markdown(ledger_table(resnet.of(WireAnswer).ledgers[0]), (0, 1, 2, 3, 4, 5)),
        "replicas-table": markdown(replicas_table(resnet.of(ReplicasAnswer).replicas[0]), (0, 1, 2, 3, 4, 5)),
        **_of_further(further),
        "hosts": f"> {hosts_sentence(read_record(HOSTS, SeveralHosts))}",
        "hosts-table": markdown(hosts_table(read_record(HOSTS, SeveralHosts))),
        "held-table": markdown(forecast_table(forecast.held_out, ""), (0, 3, 7, 4, 5, 6)),
    }


_NOT_RECORDED = "No numbers are recorded here yet."


def _of_further(study: StudyResults) -> dict[str, str]:
    """Return the parts about questions that are asked with --full only; some may not be recorded."""
    assert study.loads is not None
    parts = {
        "further-machine": f"{study.environment.machine}, {study.environment.cores} cores; load "
        f"{study.loads[0]:.1f} to {study.loads[1]:.1f} as cells began; {study.seconds:.0f} s in all."
    }
    for section in FURTHER_SECTIONS:
        tables = _tables_of(section, study) if section in study.config.sections else {}
        parts[section] = f"> {study.sentences[section]}" if tables else _NOT_RECORDED
        parts |= {name: tables.get(name, "") for name in _TABLES[section]}
    return parts


_TABLES = {
    "strategies": ("strategies-table", "memory-table"),
    "loading": ("loading-table",),
    "step": ("parts-table", "kinds-table", "layers-table"),
    "variants": ("variants-table",),
    "optimizers": ("optimizers-table",),
    "noise": ("batches-table", "noise-table", "remedies-table"),
}
"""Names of the tables of each further question."""


def _tables_of(section: str, study: StudyResults) -> dict[str, str]:
    """Return the tables of a further question; none where nothing was measured."""
    found: list[str] = []
    if section == "strategies" and (strategies := study.of(StrategiesAnswer).strategies):
        found.append(markdown(strategies_table(strategies), (0, 1, 3, 4, 5, 7, 8)))
        found.append(markdown(memory_table(strategies), (0, 1, 2, 3, 4, 5)))
    if section == "loading" and (loading := study.of(LoadingAnswer).loading) is not None:
        found.append(markdown(loading_table(loading)))
    if section == "step" and (steps := study.of(BreakdownAnswer).breakdowns):
        layers = layers_table(steps[0])
        found += [markdown(parts_table(steps)), markdown(kinds_table(steps[0]))]
        found.append(f"{layers.caption}:\n\n{markdown(layers)}")
    if section == "variants" and (variants := study.of(VariantsAnswer).variants):
        found.append(markdown(variants_table(variants), (0, 1, 3, 4, 5)))
    if section == "optimizers" and (optimizers := study.of(OptimizersAnswer).optimizers):
        found.append(markdown(optimizers_table(optimizers)))
    if section == "noise" and (noise := study.of(NoiseAnswer).large_batch) is not None:
        found += [markdown(one) for one in (batches_table(noise), noise_table(noise), remedies_table(noise))]
    return dict(zip(_TABLES[section], found, strict=True)) if found else {}


def renewed(text: str, parts: dict[str, str]) -> str:
    """Return a document with the text between its markers replaced."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{parts[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of running it where it lies."""
    notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran, which says nothing
    nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/scaling-study"), help="folder of the studies")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if not arguments.keep:
        small = study_config("cpu")
        large = study_config("cpu", model="resnet18", data="synthetic", sections=("sampler", "wire", "replicas"))
        measured = []
        further = study_config("cpu", sections=FURTHER_SECTIONS)
        studies = ((small, RECORD, "net"), (further, FURTHER, "further"), (large, RESNET, "resnet18"))
        for config, record, folder in studies:
            results = run_study(config, arguments.out / folder, resume=arguments.resume, progress=study_progress())
            if results.failures:
                lines = [f"{one.name}: {one.status}: {one.message}" for one in results.failures]
                parser.exit(1, f"cells failed, nothing was recorded: {'; '.join(lines)}\n")
            measured.append((record, results))
        for record, results in measured:
            write_bytes(record, msgspec.json.encode(plain(results)) + b"\n")
    for record in (RECORD, RESNET, FURTHER):
        results = read_results(record)
        write_bytes(record, msgspec.json.encode(plain(replace(results, sentences=sentences(results)))) + b"\n")
    parts = generated(read_results(RECORD), read_results(RESNET), read_results(FURTHER))
    write_text(DOCUMENT, renewed(DOCUMENT.read_text(), parts))
    write_text(NOTEBOOK, nbformat.writes(executed(NOTEBOOK)) + "\n")  # type: ignore[no-untyped-call]
    lab_answers.main()
    print(f"{'' if arguments.keep else 'measured anew; '}renewed {DOCUMENT.name} and {NOTEBOOK.name}")


if __name__ == "__main__":
    main()
