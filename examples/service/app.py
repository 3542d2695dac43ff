"""An HTTP service that classifies pictures with a compiled network. It needs neither torch nor a compiler.

    NETWORK=flowers.so uvicorn app:app

Settings, as environment variables:

- NETWORK: library that ``twoscale compile`` wrote.
- FINGERPRINT: of the network that is expected, as in its ``.verify.json``. Default: any.
- MAX_UPLOAD_BYTES: largest request (default 20 MiB); larger ones get 413.
- MAX_PIXELS: largest picture, decoded (default 2^24); larger ones get 413 without being decoded.
- MAX_BATCH: most pictures of one request (default 64).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.datastructures import UploadFile

import twoscale
from twoscale.data import Preprocessing
from twoscale.errors import DataError

MAX_UPLOAD_BYTES = int(os.environ.get("MAX_UPLOAD_BYTES", str(20 << 20)))
MAX_PIXELS = int(os.environ.get("MAX_PIXELS", str(1 << 24)))
MAX_BATCH = int(os.environ.get("MAX_BATCH", "64"))
TOP = 5

# One thread per call: requests run at the same time, each on a core of its own.
NETWORK = twoscale.load_compiled(os.environ["NETWORK"], threads=1, fingerprint=os.environ.get("FINGERPRINT"))
if "preprocessing" not in NETWORK.metadata:
    raise SystemExit(f"{os.environ['NETWORK']} does not record how pictures become pixels: train on pictures")
PREPROCESSING = msgspec.convert(NETWORK.metadata["preprocessing"], Preprocessing)
CLASSES: list[str] = list(NETWORK.metadata["classes"])
NETWORK(np.zeros((1, *PREPROCESSING.shape), np.uint8))

PICTURES = Counter("pictures_total", "Pictures by result", ["result"])
SECONDS = Histogram("request_seconds", "Time from the complete request to the response", ["path"])

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LimitUpload:
    """Refuse requests of more than MAX_UPLOAD_BYTES, whatever their Content-Length says, while they arrive."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve a request."""
        received = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_UPLOAD_BYTES:
                raise HTTPException(413, f"the request is larger than {MAX_UPLOAD_BYTES} bytes")
            return message

        await self.app(scope, limited, send)


app = FastAPI(title="Picture classifier", docs_url=None, redoc_url=None)
app.add_middleware(LimitUpload)


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    """Return the network's pixels of a picture file."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            size = opened.width * opened.height
    except Exception as error:  # Pillow raises almost anything for damaged files
        raise HTTPException(422, "this is no readable picture") from error
    if size > MAX_PIXELS:
        raise HTTPException(413, f"the picture has {size} pixels; expected at most {MAX_PIXELS}")
    try:
        return PREPROCESSING.read(content)
    except DataError as error:
        raise HTTPException(422, str(error)) from error


def classify(contents: list[bytes]) -> list[dict[str, Any]]:
    """Return class and probabilities of each picture; all are one batch."""
    try:
        logits = NETWORK(np.stack([pixels(content) for content in contents])).astype(np.float64)
    except HTTPException:
        PICTURES.labels("refused").inc(len(contents))
        raise
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    PICTURES.labels("classified").inc(len(contents))
    return [
        {
            "class": CLASSES[row.argmax()],
            "probabilities": {CLASSES[i]: float(row[i]) for i in (-row).argsort()[:TOP]},
        }
        for row in probabilities
    ]


async def answered(request: Request, contents: list[bytes]) -> list[dict[str, Any]]:
    """Classify in a thread, and measure the time."""
    begun = time.perf_counter()
    try:
        return await run_in_threadpool(classify, contents)
    finally:
        SECONDS.labels(request.url.path).observe(time.perf_counter() - begun)


@app.post("/classify")
async def classify_one(request: Request) -> dict[str, Any]:
    """Classify the picture that is the body of the request."""
    [found] = await answered(request, [await request.body()])
    return found


@app.post("/classify-batch")
async def classify_several(request: Request) -> list[dict[str, Any]]:
    """Classify the pictures of a multipart form, as one batch."""
    async with request.form(max_files=MAX_BATCH, max_fields=0) as form:
        files = [file for file in form.values() if isinstance(file, UploadFile)]
        if not files:
            raise HTTPException(422, "the form has no pictures")
        return await answered(request, [await file.read() for file in files])


@app.get("/health")
def health() -> dict[str, str]:
    """Say which network runs."""
    return {"network": NETWORK.name, "fingerprint": NETWORK.fingerprint, "preprocessing": str(PREPROCESSING)}


@app.get("/metrics")
def metrics() -> Response:
    """Return counters and times for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
