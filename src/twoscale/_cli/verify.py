"""``twoscale verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from twoscale._cli.common import (
    AS_RECORDED,
    Channels,
    DataName,
    File,
    ModelArgs,
    ModelName,
    Pictures,
    at_least_one,
    batches_of,
    check_takes_pictures,
    console,
    dataset_for,
    is_integer_file,
    load_model,
    print_json,
    print_line,
    recorded,
    require_file,
    require_integer_file,
)
from twoscale._cli.ending import say
from twoscale._files import read_record, write_record, write_text
from twoscale._metrics import CountedBatches
from twoscale.errors import ConfigurationError, TwoscaleError

if TYPE_CHECKING:
    from twoscale._verification.record import VerificationRecord

__all__ = ["verify_command"]


def verify_command(
    file: File,
    executors: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME,...")] = None,
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    against: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    original: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    model: ModelName = None,
    model_args: ModelArgs = None,
    data: DataName = None,
    mean: Channels = None,
    std: Channels = None,
    pictures: Pictures = AS_RECORDED,
    max_samples: int | None = None,
    record: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    json: bool = False,
) -> int:
    """Run an integer network in several executors over all test images, and compare every integer of every layer.

    Writes what was compared, on what, and with what result to NAME.verify.json and NAME.verify.html beside the network.
    With --record, it only checks that FILE is of the network in such a record: the network itself, a compiled library,
    or exported C.

    Exits with 1 if any integer differs. On the grid all integers must be equal. Off the grid, as with the course
    scheme, executors may differ, and the number of differences is a measurement.

    Args:
        file: Integer network (.onnx or .tflite).
        executors: Executors to compare: reference (NumPy), torch, onnxruntime, c, litert, and remote:ADDRESS for a
            board that runs what "export --link" writes, with HOST:PORT or a serial port such as /dev/ttyACM0@115200 for
            ADDRESS. The others are compared with the first. Default: reference and torch; without torch, reference and
            another that can run here.
        checkpoint: Weights of the float network, or the network as float .onnx or .tflite. Adds agreement, and
            the signal-to-noise ratio of every layer.
        against: Another integer network (.onnx or .tflite), compared layer by layer, or weights, as with --checkpoint.
        original: File of another tool that FILE was read from. ONNX Runtime, or LiteRT, runs it as it is, and every
            layer is compared with its tensor. Default: FILE, where it is another tool's.
        model: Model of the weights, where their file does not record it: a name, or FILE.py:CLASS for your own, whose
            code then runs.
        model_args: Options of that model.
        data: Data set. Default: the one recorded in the network, or else digits.
        mean: Mean of pixels / 255, for normalizing the images. Default: the mean recorded in the network, or else 0.5.
        std: Standard deviation of pixels / 255, with the same defaults.
        pictures: How pictures of your own become pixels. Default: as the file records.
        max_samples: Use only the first N images.
        record: Compare FILE with this record and run nothing. Exits with 1 if it is of another network.
        json: Print JSON instead of tables.
    """
    from twoscale._formats import is_tflite, load
    from twoscale._verification import verify
    from twoscale._verification.record import ImagesHash, verification_record

    at_least_one("--max-samples", max_samples)
    if record is not None:
        return _compare(file, record, json=json)
    if original is not None and not is_tflite(original):
        require_file(original, "an ONNX or .tflite file of another tool")
    network = load(require_integer_file(file))
    if checkpoint is not None and against is not None:
        raise ConfigurationError("--checkpoint and --against exclude each other; give one of them")
    weights = checkpoint or against
    other: Any = None
    if weights is not None and is_integer_file(weights):
        other = load(weights)
    elif weights is not None:
        other = load_model(weights, model, model_args)
    dataset = dataset_for(data, recorded(network), mean, std, pictures)
    check_takes_pictures(network, dataset)
    seen = ImagesHash()
    batches = batches_of(dataset.test, dataset, limit=max_samples)
    result = verify(
        network,
        CountedBatches(seen.passing(batches), batches.images),
        executors=None if executors is None else [name.strip() for name in executors.split(",") if name.strip()],
        against=other,
        original=original,
    )
    steps = dataset.preprocessing
    written = _write(
        file,
        verification_record(
            file,
            network,
            result,
            data=dataset.name,
            data_sha256=seen.hexadecimal,
            preprocessing=None if steps is None else str(steps),
            mean=dataset.mean,
            std=dataset.std,
        ),
    )
    if json:
        print_json(result)
    else:
        from twoscale._display.verification import verify_tables

        printer = console()
        for part in verify_tables(result):
            printer.print(part)
        if written:
            print_line(f"Wrote {' and '.join(map(str, written))}")
    return 0 if result.ok else 1


def _write(network: Path, record: VerificationRecord) -> tuple[Path, ...]:
    """Write the record and its page beside the network. If its folder cannot be written, the result counts."""
    from twoscale._display.verification_page import verification_page

    path, page = network.with_suffix(".verify.json"), network.with_suffix(".verify.html")
    try:
        write_record(path, record)
        write_text(page, verification_page(record, path.name))
    except TwoscaleError as error:
        say(f"no record is kept: {error}")
        return ()
    return path, page


def _compare(file: Path, record: Path, *, json: bool) -> int:
    """Compare a network, or a file made from one, with the record of a verification."""
    from twoscale._formats import load
    from twoscale._verification.record import VerificationRecord, is_of

    require_file(record, "the record of a verification (.verify.json)")
    found = read_record(record, VerificationRecord)
    if not file.is_file():
        raise ConfigurationError(f"{file} is no file; expected a network (.onnx), a compiled library, or exported C")
    same = load(file).fingerprint == found.fingerprint if is_integer_file(file) else is_of(found, file)
    if json:
        print_json({"file": str(file), "fingerprint": found.fingerprint, "same": same})
        return 0 if same else 1
    if not same:
        print_line(f"{file} is not of the network in {record}, whose fingerprint is {found.fingerprint}")
        return 1
    accuracy = "" if found.top1 is None else f", {found.top1:.2%} right"
    print_line(
        f"{file} is of the network in {record}: {found.mismatches:,} of {found.compared:,} integers differed between "
        f"{' and '.join(found.executors)} over {found.samples:,} images of {found.data}{accuracy} "
        f"({found.environment.date}, {found.environment.machine})"
    )
    return 0
