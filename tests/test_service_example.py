"""The example service, started as a process and asked by an HTTP client."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twoscale
from tests.quantization.small_models import images, residual_model
from twoscale.data import Preprocessing
from twoscale.errors import ExecutorError

httpx = pytest.importorskip("httpx")
for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
    pytest.importorskip(package)

SERVICE = Path(__file__).parents[1] / "examples" / "service"
FLOATS = images(61, 40)
HOW = Preprocessing((FLOATS.shape[2], FLOATS.shape[3]), resize="stretch")
START_SECONDS = 120.0


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    url: str
    network: twoscale.IntegerNetwork


@pytest.fixture(scope="module")
def network() -> twoscale.IntegerNetwork:
    network = twoscale.quantize(residual_model(7), FLOATS)
    steps = {"size": HOW.size, "resize": "stretch"}
    classes = [f"class {i}" for i in range(network.classes or 0)]
    return dataclasses.replace(
        network, metadata={"mean": [0.5] * 3, "std": [0.25] * 3, "preprocessing": steps, "classes": classes}
    )


@pytest.fixture(scope="module")
def service(network: twoscale.IntegerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    library = tmp_path_factory.mktemp("service") / "net.so"
    try:
        twoscale.save_compiled(network, library)
    except ExecutorError as error:
        pytest.skip(f"no library: {error}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = {"MAX_UPLOAD_BYTES": "200000", "MAX_PIXELS": "90000", "MAX_BATCH": "8"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"],
        cwd=SERVICE,
        env={**os.environ, **limits, "NETWORK": str(library), "FINGERPRINT": network.fingerprint},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{url}/health", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield Service(process, url, network)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def expected(network: twoscale.IntegerNetwork, content: bytes) -> tuple[str, float]:
    [logits] = network(HOW.read(content)[None]).astype(np.float64)
    odds = np.exp(logits - logits.max())
    return f"class {logits.argmax()}", odds.max() / odds.sum()


def test_the_classes_are_those_of_the_network(service: Service) -> None:
    contents = [picture(seed) for seed in range(6)]
    single = [httpx.post(f"{service.url}/classify", content=content, timeout=60).json() for content in contents]
    files = [(str(i), (f"{i}.png", content)) for i, content in enumerate(contents)]
    batch = httpx.post(f"{service.url}/classify-batch", files=files, timeout=60).json()
    assert batch == single
    for content, found in zip(contents, single, strict=True):
        name, probability = expected(service.network, content)
        assert found["class"] == name
        assert found["probabilities"][name] == pytest.approx(probability, abs=1e-12)
        assert sum(found["probabilities"].values()) <= 1 + 1e-9
    assert httpx.get(f"{service.url}/health").json()["fingerprint"] == service.network.fingerprint


def test_what_is_refused(service: Service) -> None:
    def code(path: str, **content: object) -> int:
        return int(httpx.post(f"{service.url}/{path}", timeout=60, **content).status_code)

    assert code("classify", content=b"no picture") == 422
    assert code("classify", content=b"") == 422
    assert code("classify", content=picture(0, (301, 300))[:150_000]) == 413  # pixels; they are never decoded
    assert code("classify", content=b"x" * 200_001) == 413
    assert code("classify", content=(b"x" * 50_000 for _ in range(5))) == 413  # no Content-Length
    assert code("classify-batch", files=[(str(i), picture(i)) for i in range(9)]) == 400
    assert code("classify-batch", files=[("a", picture(0)), ("b", b"no picture")]) == 422
    assert httpx.get(f"{service.url}/classify").status_code == 405


def test_no_request_is_lost_and_metrics_count_them(service: Service) -> None:
    def count() -> float:
        text = httpx.get(f"{service.url}/metrics").text
        found = re.search(r'^pictures_total{result="classified"} (.*)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before, content = count(), picture(3)
    with httpx.Client(timeout=120) as client, concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda _: client.post(f"{service.url}/classify", content=content), range(80))
        codes = [answer.status_code for answer in answers]
    assert codes == [200] * 80
    assert count() - before == 80
