"""A process that decodes pictures, and what the process that started it reads and writes.

The process reads requests from standard input and writes pixels to standard output. It ends
when its input does, so it does not outlive the process that started it. It imports neither torch nor anything from the
current folder.

A request is the pickle of a :class:`Request`, preceded by its length in 8 bytes. The pickle comes from the process that
started this one; nothing else can write to the pipe. The reply has one entry per picture: a byte 0 and the pixels, or a
byte 1, the length of a message in 4 bytes, and the message in UTF-8. A request to check gets no pixels after the 0.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from twoscale.data._pictures import Preprocessing, quiet_pillow
from twoscale.errors import DataError

__all__ = ["Request", "Worker", "fault", "serve"]


@dataclass(frozen=True)
class Request:
    """Pictures to decode."""

    paths: tuple[str, ...]
    how: Preprocessing
    check: bool = False
    """Report which pictures are damaged, and send no pixels."""


class Worker:
    """A worker process, as the process that started it sees it. One thread at a time may use it."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C in a terminal goes to the process that started it, which decides what to do.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from twoscale.data._worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def decode(self, request: Request, into: NDArray[Any] | None) -> list[str]:
        """Decode pictures.

        Args:
            request: which.
            into: (N, C, H, W), uint8 in C order, gets the pixels; None for a request to check.

        Returns:
            For each picture an empty string, or the reason why it cannot be read.

        Raises:
            DataError: the process has died.
        """
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        faults = []
        try:
            content = pickle.dumps(request)
            pipe_in.write(len(content).to_bytes(8, "little") + content)
            pipe_in.flush()
            for place in range(len(request.paths)):
                if _exactly(pipe_out, 1) == b"\1":
                    faults.append(_exactly(pipe_out, int.from_bytes(_exactly(pipe_out, 4), "little")).decode())
                    continue
                faults.append("")
                if into is not None:
                    view = memoryview(into[place].reshape(-1))
                    while view:
                        count = pipe_out.readinto(view)  # type: ignore[attr-defined]
                        if not count:
                            raise EOFError
                        view = view[count:]
        except (OSError, EOFError, ValueError) as error:
            code = self._process.poll()
            reason = "was killed, usually because memory ran out" if code is not None and code < 0 else "ended"
            raise DataError(f"a process that decodes pictures {reason}; run the command again") from error
        return faults

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.kill()
        self._process.wait()


def fault(path: str, error: DataError) -> str:
    """Return the line that says why a picture cannot be read; it names the file once."""
    return str(error) if path in str(error) else f"{path}: {error}"


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    content = pipe.read(count)
    if len(content) != count:
        raise EOFError
    return content


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    while head := requests.read(8):
        request = pickle.loads(_exactly(requests, int.from_bytes(head, "little")))
        for path in request.paths:
            try:
                pixels = request.how.read_in_thread(Path(path))
            except DataError as error:
                message = fault(path, error).encode("utf-8", "backslashreplace")
                replies.write(b"\1" + len(message).to_bytes(4, "little") + message)
                continue
            replies.write(b"\0")
            if not request.check:
                replies.write(pixels.data)
        replies.flush()


def serve() -> None:
    """Answer requests until there are no more."""
    # Not sys.stdout.buffer: with PYTHONUNBUFFERED it writes only a part if the process is stopped and continued then.
    with quiet_pillow(), contextlib.suppress(BrokenPipeError, EOFError), open(1, "wb", closefd=False) as replies:
        _serve(sys.stdin.buffer, replies)
