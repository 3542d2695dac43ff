"""Requests per second and response times of examples/service, its start, and its stop under load.

    python -m benchmarks.service [--requests 10000] [--connections 16] [--network NAME.so]

Starts the service as a process, with a compiled network: by default that of examples/own_model for pictures of 96 x 128
pixels, untrained. One client on the same machine sends JPEGs over persistent connections, each of which waits for its
answer before the next request. Every answer must be the class that the network gives here. Then the service is asked to
stop while all connections have a request on its way, and those must be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

import twoscale
from benchmarks.common import write_result
from twoscale.data import Preprocessing

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = 64
"""Number of different pictures."""
BATCH = 16
"""Pictures of one request to /classify-batch."""
START_SECONDS = 60.0


@dataclass(frozen=True)
class Start:
    """One start of the service."""

    seconds: float
    """From the start of the process to its first answer."""
    cpu_seconds: float
    """Time on processors until its end."""


@dataclass(frozen=True)
class Load:
    """Requests and their answers."""

    requests: int
    pictures: int
    seconds: float
    requests_per_second: float
    pictures_per_second: float
    median_ms: float
    p99_ms: float
    largest_ms: float
    lost: int
    """Requests without an answer, or with another answer than expected."""


@dataclass(frozen=True)
class Stop:
    """SIGTERM while every connection had a request on its way."""

    underway: int
    answered: int
    """Of those, with the right class."""
    seconds: float
    """From the signal to the end of the process."""
    exit_code: int


def compiled_example(folder: Path) -> Path:
    """Quantize and compile the network of examples/own_model, with new weights."""
    import torch

    from twoscale import models

    torch.manual_seed(0)
    model = models.create(f"{EXAMPLES / 'own_model' / 'mymodel.py'}:Net", num_classes=5)
    images = torch.rand(32, 3, 96, 128) * 255
    network = twoscale.quantize(model, images, normalization=((0.5,) * 3, (0.25,) * 3))
    how = msgspec.to_builtins(Preprocessing((96, 128), resize_to=128))
    recorded = {"mean": [0.5] * 3, "std": [0.25] * 3, "preprocessing": how, "classes": list("abcde")}
    twoscale.save_compiled(replace(network, metadata={**network.metadata, **recorded}), folder / "example.so")
    return folder / "example.so"


def jpegs() -> list[bytes]:
    """Return pictures of 160 x 128 to 240 x 128 pixels."""
    generator, found = np.random.default_rng(0), []
    for i in range(PICTURES):
        pixels = generator.normal(128, 70, (8, 10 + i % 6, 3)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((160 + 16 * (i % 6), 128), Image.Resampling.BICUBIC).save(file, "JPEG")
        found.append(file.getvalue())
    return found


@dataclass(frozen=True)
class Expected:
    """A picture's class and its probability."""

    name: str
    probability: float

    def is_in(self, answer: dict[str, Any]) -> bool:
        """Tell whether an answer of the service has them."""
        found = float(answer["probabilities"].get(self.name, -1))
        return answer["class"] == self.name and abs(found - self.probability) < 1e-9


def expected_answers(library: Path, pictures: list[bytes]) -> list[Expected]:
    """Return what the service must answer for each picture."""
    network = twoscale.load_compiled(library, threads=1)
    how = msgspec.convert(network.metadata["preprocessing"], Preprocessing)
    logits = network(np.stack([how.read(picture) for picture in pictures])).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    names: list[str] = list(network.metadata["classes"])
    return [Expected(names[row.argmax()], float(row.max() / row.sum())) for row in odds]


class Connection:
    """A persistent HTTP/1.1 connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def send(self, path: str, body: bytes = b"", kind: str = "image/jpeg") -> None:
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n" if body else "\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None
        return int(head.split()[1]), await self._reader.readexactly(int(length[1]))

    def close(self) -> None:
        self._writer.close()


def form(pictures: list[bytes]) -> tuple[bytes, str]:
    """Return a multipart form and its type."""
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="p%d"; filename="p.jpg"\r\n\r\n%b\r\n' % (i, picture)
        for i, picture in enumerate(pictures)
    ]
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


async def load(
    port: int, pictures: list[bytes], answers: list[Expected], requests: int, connections: int, batch: int
) -> Load:
    """Send requests of ``batch`` pictures each, and check every answer."""
    times: list[float] = []
    lost, numbers = 0, iter(range(requests))

    async def client() -> None:
        nonlocal lost
        connection = await Connection(port).open()
        for number in numbers:
            places = [(number * batch + i) % PICTURES for i in range(batch)]
            begun = time.perf_counter()
            try:
                if batch == 1:
                    await connection.send("/classify", pictures[places[0]])
                else:
                    await connection.send("/classify-batch", *form([pictures[place] for place in places]))
                code, body = await connection.answer()
            except (OSError, asyncio.IncompleteReadError):
                lost += 1
                connection = await Connection(port).open()
                continue
            times.append(time.perf_counter() - begun)
            found = json.loads(body) if code == 200 else []
            found = [found] if isinstance(found, dict) else found
            lost += len(found) != batch or not all(answers[p].is_in(a) for p, a in zip(places, found, strict=True))
        connection.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    seconds = time.perf_counter() - begun
    median, p99, largest = (float(value) * 1000 for value in np.quantile(times, [0.5, 0.99, 1.0]))
    return Load(
        requests, requests * batch, seconds, requests / seconds, requests * batch / seconds, median, p99, largest, lost
    )


async def stop(
    process: subprocess.Popen[bytes], port: int, pictures: list[bytes], answers: list[Expected], connections: int
) -> Stop:
    """Send a request on every connection, then SIGTERM, and read the answers."""
    opened = [await Connection(port).open() for _ in range(connections)]
    for connection in opened:  # the service has accepted all of them
        await connection.send("/health")
        await connection.answer()
    for i, connection in enumerate(opened):
        await connection.send("/classify-batch", *form([pictures[i % PICTURES]] * BATCH))
    await asyncio.sleep(0.02)
    begun = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    answered = 0
    for i, connection in enumerate(opened):
        try:
            code, body = await connection.answer()
        except (OSError, asyncio.IncompleteReadError):
            continue
        answered += code == 200 and all(map(answers[i % PICTURES].is_in, json.loads(body)))
    code = await asyncio.to_thread(process.wait, 60)
    return Stop(connections, answered, time.perf_counter() - begun, code)


async def counted(port: int) -> dict[str, float]:
    """Return the service's own counts of pictures, by result."""
    connection = await Connection(port).open()
    await connection.send("/metrics")
    _, text = await connection.answer()
    connection.close()
    return {a: float(b) for a, b in re.findall(r'^pictures_total{result="(\w+)"} (.*)$', text.decode(), re.MULTILINE)}


def start(library: Path) -> tuple[subprocess.Popen[bytes], int, float]:
    """Start the service; return its process, its port, and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "-m",
        "uvicorn",
        "app:app",
        "--port",
        str(port),
        "--log-level",
        "warning",
        "--timeout-graceful-shutdown",
        "30",
    ]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=EXAMPLES / "service", env={**os.environ, "NETWORK": str(library.resolve())}
    )

    async def ask() -> None:
        while True:
            try:
                connection = await Connection(port).open()
                await connection.send("/health")
                code, _ = await connection.answer()
                assert code == 200
                connection.close()
                return
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("the service ended") from None
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(ask(), START_SECONDS))
    return process, port, time.perf_counter() - begun


def started_and_stopped(library: Path) -> Start:
    """Start the service, ask it once, and stop it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process, _, seconds = start(library)
    process.terminate()
    process.wait(60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Start(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--network", type=Path, help="a library of twoscale compile, made for pictures")
    parser.add_argument("--no-record", action="store_true", help="print only")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = chosen.network or compiled_example(Path(folder))
        pictures = jpegs()
        answers = expected_answers(library, pictures)
        starts = [started_and_stopped(library) for _ in range(5)]
        process, port, _ = start(library)
        try:
            single = asyncio.run(load(port, pictures, answers, chosen.requests, chosen.connections, 1))
            batches = asyncio.run(
                load(port, pictures, answers, chosen.requests // BATCH, max(1, chosen.connections // 4), BATCH)
            )
            counts = asyncio.run(counted(port))
            ended = asyncio.run(stop(process, port, pictures, answers, chosen.connections))
        finally:
            process.kill()
            process.wait()
    result = {
        "network": library.name,
        "classes": dict(Counter(answer.name for answer in answers)),
        "connections": chosen.connections,
        "starts": starts,
        "single": single,
        "batches": batches,
        "pictures_counted": counts,
        "stop": ended,
    }
    print(json.dumps(msgspec.to_builtins(result), indent=2))
    sent = single.pictures + batches.pictures
    if single.lost or batches.lost or ended.answered < ended.underway or counts.get("classified") != sent:
        raise SystemExit("requests were lost")
    if not chosen.no_record:
        print(write_result("service", result, "fastapi", "uvicorn", "pillow"))


if __name__ == "__main__":
    main()
