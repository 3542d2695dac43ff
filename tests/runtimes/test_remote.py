"""The remote executor: boards that run exported C, here as a program behind TCP or a terminal, and as QEMU's boards."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import struct
import subprocess
import threading
import time
import tty
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pytest

import twoscale
from tests import sweep
from tests.codegen.compiling import DTYPES, SANITIZED, STRICT, build, every_kernel, need
from tests.integer_networks import ActivationType, random_images, random_network
from twoscale._codegen.c import export_c
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes import create
from twoscale._runtimes.link import Limits
from twoscale._runtimes.remote import RemoteExecutor
from twoscale.errors import ConfigurationError, ExecutorError

ROOT = Path(__file__).parents[2]
HOST = ROOT / "examples" / "link" / "posix.c"
BOARDS = {
    "cortex-m3": ("mps2-an385", "portable"),
    "cortex-m0": ("microbit", "small-ram"),
    "cortex-m4": ("mps2-an386", "cortex-m4"),
    "cortex-m33": ("mps2-an505", "cortex-m4-small-ram"),
    "cortex-m55": ("mps3-an547", "cortex-m55"),
}
QUICK = Limits(silence_seconds=5, gap_seconds=0.2, request_seconds=20)


QUICK_TO_COMPILE = ("-std=c99", "-O0")
SANITIZED_QUICKLY = (*SANITIZED, "-O0")


def program_for(
    network: IntegerNetwork,
    folder: Path,
    target: str = "portable",
    fingerprint: str | None = None,
    flags: Sequence[str] = QUICK_TO_COMPILE,
) -> Path:
    """Return a board's program for this machine."""
    need("gcc")
    export_c(network, folder, target=target, name="net", link=True)
    if fingerprint is not None:
        header = folder / "net.h"
        header.write_text(header.read_text().replace(network.fingerprint, fingerprint))
    host = folder / "host.c"
    host.write_text(HOST.read_text().replace("return 0;", "static uint32_t calls; return 1000 * calls++;", 1))
    return build("gcc", folder, ["net.c", "net_link.c", "host.c"], *flags, "-D_DEFAULT_SOURCE", "-DNET_TRACE", "-I.")


@contextlib.contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection in a thread; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


def running(program: Path) -> Callable[[socket.socket], None]:
    """Return a server that connects a program."""

    def serve(connection: socket.socket) -> None:
        subprocess.run([program], stdin=connection.fileno(), stdout=connection.fileno(), check=True)

    return serve


@pytest.fixture(scope="module")
def network() -> IntegerNetwork:
    rng = np.random.default_rng(11)
    return random_network(
        rng, operators={"conv", "residual"}, length=4, dtype="int8", image_shape=(3, 9, 8), extreme=False
    )


@pytest.fixture(scope="module")
def program(network: IntegerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_for(network, tmp_path_factory.mktemp("board"), "small-ram", flags=SANITIZED_QUICKLY)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("target", ["small-ram", "portable", "cortex-m4", "cortex-m55-small-ram"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_integer_is_the_same(dtype: ActivationType, target: str, tmp_path: Path) -> None:
    network = every_kernel(dtype)
    images = random_images(np.random.default_rng(0), network, 3)
    with served(running(program_for(network, tmp_path, target))) as address:
        result = twoscale.verify(network, [images], executors=["reference", f"remote:{address}"])
    assert result.mismatches == 0
    assert result.compared == 3 * sum(int(np.prod(layer.output.shape)) for layer in network)
    assert result.executors == ("reference", f"remote:{address}")


def test_a_serial_port(network: IntegerNetwork, program: Path) -> None:
    """A pseudo-terminal. Rows are 1000 cycles apart here."""
    board, computer = os.openpty()
    tty.setraw(board)
    process = subprocess.Popen([program], stdin=board, stdout=board)
    try:
        executor = create(f"remote:{os.ttyname(computer)}@9600", network)
        assert isinstance(executor, RemoteExecutor)
        images = random_images(np.random.default_rng(1), network, 2)
        expected = ReferenceExecutor(network).run(images)
        found = executor.run(images)
        assert all(np.array_equal(expected[name], found[name]) for name in network.outputs)
        assert executor.cycles_per_image is not None
        assert executor.cycles_per_image % 1000 == 0
        assert executor.cycles_per_image > 1000 * len(network.layers)
        executor.close()
    finally:
        process.kill()
        process.wait()
        os.close(board)
        os.close(computer)


def with_wrong_weight(network: IntegerNetwork, place: int) -> tuple[IntegerNetwork, str]:
    """Return the network with another weight in its first convolution, and that layer's name."""
    index, layer = next((i, layer) for i, layer in enumerate(network) if isinstance(layer, n.Conv2d))
    weight = layer.weight.copy()
    weight.flat[place] = -weight.flat[place] if weight.flat[place] else 50
    layers = list(network.layers)
    layers[index] = dataclasses.replace(layer, weight=weight)
    return dataclasses.replace(network, layers=tuple(layers)), layer.name


def test_differing_integers_are_counted(network: IntegerNetwork, tmp_path: Path) -> None:
    """Planted: one wrong weight. The board differs in as many integers as the network with this weight."""
    images = random_images(np.random.default_rng(2), network, 3)
    names = [layer.name for layer in network]
    expected = ReferenceExecutor(network).run(images, names)
    for place in range(100):
        wrong, layer = with_wrong_weight(network, place)
        found = ReferenceExecutor(wrong).run(images, names)
        different = {name: int(np.count_nonzero(expected[name] != found[name])) for name in names}
        if different[network.output]:
            break
    assert different[network.output]
    board = program_for(wrong, tmp_path, "small-ram", network.fingerprint)
    with served(running(board)) as address:
        result = twoscale.verify(network, [images], executors=["reference", f"remote:{address}"])
    assert {check.name: check.mismatches for check in result.layers} == different
    assert result.first_divergence is not None
    assert result.first_divergence.startswith(f"layer {layer} (Conv2d), image ")


def forwarding(program: Path, *, drop_in: int = -1, drop_out: int = -1, stop_after: int = -1) -> Callable[..., None]:
    """Return a server that connects a program through a cable which loses bytes.

    Args:
        program: of the board.
        drop_in: which byte to the board is lost; -1: none.
        drop_out: which byte from the board is lost.
        stop_after: bytes from the board after which none arrives any more.
    """

    def serve(connection: socket.socket) -> None:
        with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as board:
            assert board.stdin is not None
            assert board.stdout is not None

            def to_board(board_input: IO[bytes]) -> None:
                passed = 0
                while data := connection.recv(4096):
                    at = drop_in - passed
                    passed += len(data)
                    with contextlib.suppress(OSError):
                        board_input.write(data[:at] + data[at + 1 :] if 0 <= at < len(data) else data)
                board.kill()

            sender = threading.Thread(target=to_board, args=[board.stdin])
            sender.start()
            passed = 0
            while data := board.stdout.read(4096):
                at = drop_out - passed
                passed += len(data)
                if stop_after < 0 or passed <= stop_after:
                    with contextlib.suppress(OSError):
                        connection.sendall(data[:at] + data[at + 1 :] if 0 <= at < len(data) else data)
            sender.join()

    return serve


@pytest.mark.parametrize("lost", [{"drop_in": 60}, {"drop_out": 130}, {"drop_out": 86}], ids=str)
def test_a_lost_byte_is_made_up_for(network: IntegerNetwork, program: Path, lost: dict[str, int]) -> None:
    images = random_images(np.random.default_rng(3), network, 2)
    with served(forwarding(program, **lost)) as address:
        executor = RemoteExecutor(network, address, limits=QUICK)
        result = twoscale.verify(network, [images], executors=["reference", executor])
        executor.close()
    assert result.mismatches == 0


def test_a_board_that_stops_answering(network: IntegerNetwork, program: Path) -> None:
    limits = dataclasses.replace(QUICK, silence_seconds=0.2, attempts=2)
    with served(forwarding(program, stop_after=150)) as address:
        executor = RemoteExecutor(network, address, limits=limits)
        with pytest.raises(
            ExecutorError, match=r"did not answer after \d images, in 2 attempts: it sent nothing for 0.2"
        ):
            executor.run(random_images(np.random.default_rng(3), network, 40))
        executor.close()


def _frame(kind: bytes, number: int, content: bytes, length: int | None = None) -> bytes:
    body = struct.pack("<cBI", kind, number, len(content) if length is None else length) + content
    return b"TS" + body + struct.pack("<I", zlib.crc32(body))


def _endless(data: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)

    return send


STRANGERS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "noise": (_endless(bytes(4096)), "it sent [0-9,]+ bytes that answer nothing"),
    "beginnings": (_endless(b"TS" * 2048), "it sent [0-9,]+ bytes that answer nothing"),
    "huge": (_endless(_frame(b"H", 1, b"", 0xFFFFFFFF)), "it sent [0-9,]+ bytes that answer nothing"),
    "layers": (_endless(_frame(b"D", 1, bytes(40))), "it sent [0-9,]+ bytes that answer nothing"),
    "damaged": (_endless(_frame(b"E", 9, b"")), "the request arrived damaged"),
    "another": (_endless(_frame(b"H", 1, b"f" * 64 + bytes(12))), "with the fingerprint ffffffffffff..., expected"),
    "gone": (lambda connection: None, "lost the board at .*: "),
    "silent": (lambda connection: time.sleep(1.2), "it sent nothing for 0.3"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_end_in_an_error(stranger: str, network: IntegerNetwork) -> None:
    serve, message = STRANGERS[stranger]
    limits = Limits(silence_seconds=0.3, gap_seconds=0.2, request_seconds=5, noise_bytes=10_000)
    with served(serve) as address, pytest.raises(ExecutorError, match=message):
        RemoteExecutor(network, address, limits=limits)


def test_a_slow_stranger_meets_the_limit_of_a_request(network: IntegerNetwork) -> None:
    def drip(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"\0")
            time.sleep(0.05)

    limits = Limits(silence_seconds=5, request_seconds=0.4, attempts=1)
    with (
        served(drip) as address,
        pytest.raises(ExecutorError, match="1 attempts: its answer took more than 0"),
    ):
        RemoteExecutor(network, address, limits=limits)


@pytest.mark.parametrize("address", ["", "board", "host:", "host:99999", "host:port", "relative/tty", "/dev/x@fast"])
def test_addresses_that_are_none(address: str, network: IntegerNetwork) -> None:
    with pytest.raises((ConfigurationError, ExecutorError), match=r"expected remote:HOST:PORT|cannot open"):
        create(f"remote:{address}", network)


def test_ports_that_are_not_there(network: IntegerNetwork, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ExecutorError, match=f"cannot connect to the board at 127.0.0.1:{port}: "):
        create(f"remote:127.0.0.1:{port}", network)
    with pytest.raises(ExecutorError, match="cannot open the serial port /dev/no-such-port: No such file"):
        create("remote:/dev/no-such-port", network)
    (tmp_path / "file").touch()
    with pytest.raises(ExecutorError, match="is no serial port"):
        create(f"remote:{tmp_path / 'file'}", network)
    with pytest.raises(ConfigurationError, match="speed is 12345; expected one such as 115200"):
        create(f"remote:{tmp_path / 'file'}@12345", network)


def test_the_loop_compiles_without_warnings(network: IntegerNetwork, tmp_path: Path) -> None:
    need("gcc", "g++")
    export_c(network, tmp_path, name="net", link=True)
    build("gcc", tmp_path, ["net_link.c"], *STRICT, "-DNET_TRACE", "-c", out="a.o")
    build("g++", tmp_path, ["-x", "c++", "net_link.c"], "-Wall", "-Wextra", "-Werror", "-DNET_TRACE", "-c", out="b.o")
    failed = subprocess.run(["gcc", "-c", "net_link.c"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "define NET_TRACE for net.c and net_link.c" in failed.stderr


def test_only_microcontrollers_have_it(network: IntegerNetwork, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="link is for microcontrollers; expected target portable"):
        export_c(network, tmp_path / "out", target="native", link=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cpu", [*BOARDS][:1] if not sweep.whole() else [*BOARDS])
def test_boards_under_qemu(cpu: str, tmp_path: Path) -> None:
    need("make", "arm-none-eabi-gcc", "qemu-system-arm")
    machine, target = BOARDS[cpu]
    network = every_kernel("int8")
    export_c(network, tmp_path, name="net", link=True, target=target)
    program = tmp_path / "build" / f"link-{cpu}.elf"
    subprocess.run(
        ["make", "-s", "-f", ROOT / "examples" / "cortex-m" / "Makefile", program, f"NETWORK={tmp_path / 'net'}",
         f"CPU={cpu}", f"BUILD={tmp_path / 'build'}"],
        check=True,
    )  # fmt: skip
    with subprocess.Popen(
        ["qemu-system-arm", "-M", machine, "-nographic", "-monitor", "none", "-serial", "pty", "-semihosting-config",
         "enable=on,target=native", "-kernel", program],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as board:  # fmt: skip
        try:
            assert board.stdout is not None
            port = re.search(r"/dev/\S+", board.stdout.readline())
            assert port is not None
            images = random_images(np.random.default_rng(0), network, 2)
            result = twoscale.verify(network, [images], executors=["reference", f"remote:{port[0]}"])
        finally:
            board.kill()
    assert (result.mismatches, result.samples) == (0, 2)
    assert result.cycles_by_executor == {}  # QEMU counts none
