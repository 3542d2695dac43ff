"""docs/lab.md: every question of both lab sheets, answered from recorded runs.

    twoscale lab --data cifar10 --out lab-cifar10 && cp lab-cifar10/results.json docs/lab-cifar10.json
    python -m benchmarks.lab_answers

The first line records the lab anew, in some minutes; the second one writes docs/lab.md and the pictures of the README
from docs/lab-cifar10.json, docs/scaling-study.json and docs/scaling-resnet18.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import markdown
from twoscale._display.statistics import statistics_table
from twoscale._files import read_record, write_text
from twoscale._lab import findings, tables
from twoscale._lab.changes import float_stage
from twoscale._lab.page import before_and_after
from twoscale._lab.picture import write_picture
from twoscale._lab.records import LabNetwork, LabResults
from twoscale._page.tables import Table

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = DOCS / "lab.md"
LAB = DOCS / "lab-cifar10.json"
STUDY = DOCS / "scaling-study.json"
RESNET = DOCS / "scaling-resnet18.json"


@dataclass(frozen=True)
class Question:
    """One question of a sheet."""

    id: str
    title: str
    command: str
    place: str
    published: str
    wrong: str
    """What is wrong in the published answer or missing from it; empty where nothing is."""


QUANTIZATION = (
    Question(
        "Q1",
        "What do the weights look like?",
        "twoscale lab --data cifar10",
        "section 1, Weights",
        "histograms of every layer's weights, as pictures",
        "",
    ),
    Question(
        "Q2",
        "Which range should the weights of a layer have, and what does it cost?",
        "twoscale lab --data cifar10",
        "section 2, Quantize weights",
        "the total range, a factor of 127 / max; accuracy falls from 52.99 % to 52.2 %",
        "only one range was tried",
    ),
    Question(
        "Q3",
        "What do the input and the outputs of the layers look like?",
        "twoscale lab --data cifar10",
        "section 3, Activations",
        "histograms of what the next layer receives, after ReLU and pooling, as pictures",
        "",
    ),
    Question(
        "Q4",
        "What is the scale of the input and of each layer's output?",
        "twoscale lab --data cifar10",
        "section 4, Quantize activations",
        "127 / (max · n_w · n_initial_input · Π(n_w·n_out)); 52.2 % and 54.59 %",
        "the formula is right, but not derived",
    ),
    Question(
        "Q5",
        "In which unit is a bias?",
        "twoscale lab --data cifar10 --model net-with-bias",
        "section 5, Quantize biases",
        "float 54.71 %, weights only 47.48 %; the bias divided by the right unit and then stretched to the full range "
        "of int32, 10.0 %",
        "a bias is not stretched: its unit n_w · n_initial_input · Π(n_w·n_out) = 1/(s_x·s_w) follows from the scales",
    ),
    Question(
        "Next",
        "How many bits are enough?",
        "twoscale lab --data cifar10 --bits 2,3,4,5,6,8",
        "section 7, Fewer bits",
        "not asked",
        "",
    ),
)

_GPUS = "twoscale scale resnet18 --data cifar10 --batch-sizes 32,128,512,1024 --world-sizes 1,2,4"
SCALING = (
    Question(
        "A1",
        "How long is an epoch at each batch size, and why?",
        f"{_GPUS} --sections batch",
        "section batch",
        "larger batches use the GPU better",
        "no table",
    ),
    Question(
        "A2",
        "How much faster are two and four GPUs, and which scaling is it?",
        f"{_GPUS} --sections speedup",
        "section speedup",
        "batch 32: 15.89, 28.04 and 17.39 s on 1, 2 and 4 GPUs, speed-up 1, 0.57 and 0.35; batch 1024: 9.87, 10.24 and "
        "10.97 s",
        "the times are those of a whole epoch on any number of GPUs and hardly depend on it, so something else "
        "(loading the data) was measured; 17.39 s is not a speed-up of 0.35; whether scaling is weak or "
        "strong is not stated",
    ),
    Question(
        "A3.1",
        "How long does a step compute, and how long does it communicate?",
        f"{_GPUS} --sections communication",
        "section communication",
        "per epoch on 2 GPUs 15.50 + 11.43 s at batch 32, 8.57 + 0.40 s at 128, 7.53 + 1.59 s at 512",
        "differences without intervals; that communication overlaps computing was ignored",
    ),
    Question(
        "A3.2",
        "What bandwidth does the all-reduce reach?",
        f"{_GPUS} --sections communication",
        "section communication",
        "15.7 MB/s, 61.84 and 140.3 GB/s at the three batches on 2 GPUs",
        "a link does not become faster with the batch: exposed time is not transfer time",
    ),
    Question(
        "A4.1",
        "What does the largest batch cost in accuracy?",
        f"{_GPUS} --sections accuracy",
        "section accuracy",
        "73.90 % against 84.90 % at batch 128 on one GPU",
        "the log that was shown is that of batch 128",
    ),
    Question(
        "A4.2",
        "How can the accuracy be recovered?",
        f"{_GPUS} --sections accuracy",
        "section accuracy",
        "a linear learning rate, LARS or clipping",
        "nothing was measured",
    ),
    Question(
        "A5",
        "Why is a distributed sampler given the epoch?",
        "twoscale scale --sections sampler",
        "section sampler",
        "for shuffling, and against bias",
        "right in outline",
    ),
    Question(
        "A6",
        "Do only gradients cross the network?",
        "twoscale scale resnet18 --sections wire",
        "section wire",
        "no: weights, synchronization and state as well",
        "what exactly, how often, and how many bytes is missing",
    ),
    Question(
        "A7",
        "Would gradients alone be enough?",
        "twoscale scale resnet18 --sections replicas",
        "section replicas",
        "no, convergence would suffer",
        "false for parameters that begin equal; true of BatchNorm's statistics",
    ),
)


def document(lab: LabResults, study: dict[str, str], resnet: dict[str, str]) -> str:
    """Return docs/lab.md.

    Args:
        lab: record of the lab.
        study: the recorded sentences of the scaling study, by section.
        resnet: those of the study of ResNet-18.
    """
    environment = lab.environment
    lines = [
        "# The lab sheets, answered",
        "",
        "This project grew from two lab sheets of a university course, one on quantization and one on data-parallel "
        "training. This page answers each question with the numbers of a recorded run. `python -m "
        "benchmarks.lab_answers` writes it from [lab-cifar10.json](lab-cifar10.json), "
        "[scaling-study.json](scaling-study.json) and [scaling-resnet18.json](scaling-resnet18.json).",
        "",
        "## Quantizing a small network",
        "",
        f"Data: {lab.data}, {lab.train_samples:,} training and {lab.test_samples:,} test images; "
        f"{environment.machine}, {environment.cores} cores, torch {environment.versions['torch']}. The page is "
        "`report.html` in the folder given with `--out`. *Two standard errors* are those of the paired difference "
        "from the float network.",
    ]
    for question in QUANTIZATION:
        lines += ["", *_head(question), "", *_quantization(question.id, lab)]
    lines += [
        "",
        "## Data-parallel training",
        "",
        "The recorded study ran on the processor of the machine named in [scaling.md](scaling.md), which also has its "
        "tables; the commands are those of the sheet's machine with 4 GPUs.",
    ]
    sections = ("batch", "speedup", "communication", "communication", "accuracy", "accuracy")
    answers = [study[section] for section in sections]
    answers += [study["sampler"], resnet["wire"], resnet["replicas"]]
    for question, answer in zip(SCALING, answers, strict=True):
        lines += ["", *_head(question), "", f"Answer: {answer}"]
        lines += _ADDED.get(question.id, [])
    return "\n".join(lines) + "\n"


_ADDED = {
    "A2": [
        "",
        "With the batch of each rank kept (weak scaling) the batch of all ranks grows with their number; with the "
        "batch of all kept (strong scaling) each rank gets less to do.",
    ],
    "A3.2": [
        "",
        "Each rank sends (n − 1)/n of the gradients while they are summed and (n − 1)/n while the sums are gathered, "
        "2(n − 1)/n in all; this number of bytes divided by the time that the all-reduce alone takes is the bandwidth.",
    ],
}


def _head(question: Question) -> list[str]:
    published = f"Published: {question.published}."
    if question.wrong:
        published += f" *{question.wrong[0].upper()}{question.wrong[1:]}.*"
    return [
        f"### {question.id}",
        "",
        f"**{question.title}**",
        "",
        f"Command: `{question.command}`. On the page: {question.place}.",
        "",
        published,
    ]


def _quantization(question: str, lab: LabResults) -> list[str]:
    plain, biased = lab.networks
    both = lab.schemes
    if question == "Q1":
        return _answer(findings.weight_findings(plain), [statistics_table(plain.weights, "", zeros=False)])
    if question == "Q2":
        noise = tables.weight_ranges_table(
            [one for one in plain.ranges["default"] if one.kind == "weight"], plain.noise["default"], ""
        )
        said = [*findings.method_findings(plain), *findings.feedback_findings(plain, "default")]
        return _answer(said, [tables.methods_table(plain.methods, float_stage(plain), ""), noise])
    if question == "Q3":
        return _answer(findings.activation_findings(plain), [statistics_table(before_and_after(plain), "", zeros=True)])
    if question == "Q4":
        said = [
            "An accumulator a is a sum of products and stands for s_x·s_w·a. The output integer counts in units of "
            "s_y, so it is a · M, rounded, with M = s_x·s_w/s_y and s_y = max/127. The sheet's factors n are the "
            "reciprocals, n_x = 1/s_x and n_w = 1/s_w, and its n_out is M: with 1/s_x = n_initial_input · Π(n_w·n_out) "
            "over the layers before, M = 127 / (max · n_w · n_initial_input · Π(n_w·n_out)).",
            *findings.worked_findings(plain, both),
        ]
        rows = [stage for stage in plain.stages if stage.stage in ("float", "activations", "integer")]
        shown = [tables.stages_table(rows, ""), tables.scales_table(plain.scales["course"], "")]
        return _answer(said, [*shown, *(tables.worked_table(plain.worked[scheme], "") for scheme in both)])
    if question == "Q5":
        said = [*findings.half_way_findings(biased, both), *findings.bias_findings(biased, both)]
        said += findings.bias_correction_findings(biased, "default")
        rows = [stage for stage in biased.stages if stage.stage in ("float", "integer")]
        rows[1:1] = biased.bias_stages
        return _answer(said, [tables.stages_table(rows, ""), tables.bias_integers_table(biased.biases["course"], "")])
    return _answer(_of_both(findings.bits_findings, lab, both), [_bits(one) for one in lab.networks])


def _of_both(find: object, lab: LabResults, schemes: Sequence[str]) -> list[str]:
    assert callable(find)
    return [f"{network.name}: {text}" for network in lab.networks for text in find(network, schemes)]


def _bits(network: LabNetwork) -> Table:
    return tables.bits_table(network.bits, float_stage(network), "")


def _answer(sentences: Sequence[str], shown: Sequence[Table]) -> list[str]:
    lines = ["Answer:", "", *(f"- {sentence}" for sentence in sentences)]
    for one in shown:
        lines += ["", markdown(one)]
    return lines


def main() -> None:
    """Write the document and the pictures."""
    lab = read_record(LAB, LabResults)
    study, resnet = (json.loads(path.read_text())["sentences"] for path in (STUDY, RESNET))
    write_text(DOCUMENT, document(lab, study, resnet))
    write_picture(lab, DOCS)
    print(f"renewed {DOCUMENT.name} and the pictures")


if __name__ == "__main__":
    main()
