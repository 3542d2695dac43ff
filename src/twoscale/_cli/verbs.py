"""The verbs of the command line. To add one, write its function in a file of its own and give it an entry here.

A verb is imported only when it is called, so that help for all of them needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VERBS", "Verb"]


@dataclass(frozen=True)
class Verb:
    """A verb's line in ``twoscale --help``, and where its function is."""

    group: str
    usage: str
    """Its name and positional arguments."""
    summary: str
    function: str
    """module:name."""
    examples: tuple[str, ...]
    needs_torch: bool = False
    """Whether it can do nothing without torch."""
    shows_progress: bool = False
    """Whether what takes long is shown on a terminal's standard error. Other verbs show it themselves or are quick."""


VERBS = {
    "lab": Verb(
        "Everything at once",
        "lab",
        "run the whole quantization lab and write a report",
        "twoscale._cli.lab:lab_command",
        (
            "twoscale lab",
            "twoscale lab --data cifar10 --out lab-cifar10",
            "twoscale lab --data cifar10 --out lab-cifar10 --resume",
            "twoscale lab --model resnet20 --scheme default --bits 3,4,8",
        ),
        needs_torch=True,
    ),
    "data list": Verb(
        "Step by step",
        "data list",
        "list the data sets",
        "twoscale._cli.data:list_command",
        ("twoscale data list",),
    ),
    "data fetch": Verb(
        "Step by step",
        "data fetch NAME",
        "download a data set and check it",
        "twoscale._cli.data:fetch_command",
        ("twoscale data fetch cifar10", "twoscale data fetch cifar10 --path cifar-10-python.tar.gz"),
    ),
    "train": Verb(
        "Step by step",
        "train MODEL",
        "train a float network",
        "twoscale._cli.train:train_command",
        (
            "twoscale train net --out runs/net",
            "twoscale train net-with-bias --data cifar10 --epochs 4 --out runs/four",
            "twoscale train net-with-bias --data cifar10 --epochs 4 --out runs/four --resume",
            "twoscale train resnet18 --data cifar10 --recipe standard --procs 2 --out runs/resnet18",
        ),
        needs_torch=True,
    ),
    "scale": Verb(
        "Everything at once",
        "scale [MODEL]",
        "measure how training scales over ranks, and why it stops",
        "twoscale._cli.scale:scale_command",
        (
            "twoscale scale",
            "twoscale scale resnet18 --data cifar10 --batch-sizes 64,256,1024 --world-sizes 1,2",
            "twoscale scale --sections batch,communication --out scale --resume",
        ),
        needs_torch=True,
    ),
    "eval": Verb(
        "Step by step",
        "eval FILE",
        "measure the accuracy of a float or integer network",
        "twoscale._cli.evaluate:eval_command",
        ("twoscale eval runs/net/model.safetensors", "twoscale eval net.onnx --json"),
        shows_progress=True,
    ),
    "inspect": Verb(
        "Step by step",
        "inspect FILE",
        "show ranges of weights and activations, or integer layers",
        "twoscale._cli.inspect:inspect_command",
        (
            "twoscale inspect runs/net/model.safetensors",
            "twoscale inspect runs/net/model.safetensors --activations",
            "twoscale inspect net.onnx",
        ),
    ),
    "quantize": Verb(
        "Step by step",
        "quantize FILE",
        "turn a float network into an integer network (.onnx)",
        "twoscale._cli.quantize:quantize_command",
        (
            "twoscale quantize runs/net/model.safetensors -o net.onnx",
            "twoscale quantize runs/net/model.safetensors -o course.onnx --scheme course",
            "twoscale quantize runs/net/model.safetensors -o four.onnx --weight-bits 4",
            "twoscale quantize resnet20.pt --model resnet20 --data cifar10 -o resnet20.onnx",
        ),
        needs_torch=True,
        shows_progress=True,
    ),
    "requantize": Verb(
        "Step by step",
        "requantize FILE",
        "move free multipliers onto the grid, for C",
        "twoscale._cli.requantize:requantize_command",
        (
            "twoscale requantize foreign.onnx -o net.onnx",
            "twoscale requantize foreign.onnx -o net.onnx --data cifar10",
            "twoscale requantize model.tflite -o net.onnx --data cifar10",
        ),
    ),
    "sensitivity": Verb(
        "Step by step",
        "sensitivity FILE",
        "measure what fewer bits cost per layer; choose bits",
        "twoscale._cli.sensitivity:sensitivity_command",
        (
            "twoscale sensitivity runs/net/model.safetensors",
            "twoscale sensitivity runs/net/model.safetensors --budget 0.5 -o half.onnx",
            "twoscale sensitivity runs/net/model.safetensors --bits 2,4 --max-samples 200 --json",
        ),
        needs_torch=True,
        shows_progress=True,
    ),
    "verify": Verb(
        "Step by step",
        "verify FILE",
        "compare all integers between executors",
        "twoscale._cli.verify:verify_command",
        (
            "twoscale verify net.onnx",
            "twoscale verify net.onnx --checkpoint runs/net/model.safetensors",
            "twoscale verify net.onnx --against four.onnx",
            "twoscale verify net-c/net.h --record net.verify.json",
            "twoscale verify net.onnx --executors reference,torch,onnxruntime,c --json",
        ),
        shows_progress=True,
    ),
    "compile": Verb(
        "Step by step",
        "compile FILE",
        "compile an integer network into a shared library (.so)",
        "twoscale._cli.compile:compile_command",
        ("twoscale compile net.onnx -o net.so", "twoscale compile net.onnx -o net.so --target avx2"),
        shows_progress=True,
    ),
    "export": Verb(
        "Step by step",
        "export FILE",
        "write an integer network as C source",
        "twoscale._cli.export:export_command",
        ("twoscale export net.onnx --out net-c", "twoscale export net.onnx --to qdq --out net-qdq.onnx"),
        shows_progress=True,
    ),
    "explain": Verb(
        "Step by step",
        "explain FILE",
        "write a page that follows the integers of one picture",
        "twoscale._cli.explain:explain_command",
        (
            "twoscale explain net.onnx --image cat.png -o cat.html",
            "twoscale explain net.onnx --image cat.png -o cat.html --float model.safetensors",
        ),
        shows_progress=True,
    ),
    "completion": Verb(
        "Setup",
        "completion SHELL",
        "print the script for completion in bash, zsh or fish",
        "twoscale._cli.completion:completion_command",
        ("twoscale completion bash",),
    ),
}
