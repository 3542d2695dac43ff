"""Packages of exported C: their descriptions name files that exist, and their examples compile, run and pass."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.codegen.compiling import every_kernel, need
from twoscale._codegen.c import export_c
from twoscale._codegen.c.packages import PACKAGES
from twoscale._codegen.targets import PACKAGE_NAMES
from twoscale.errors import ConfigurationError, UnknownNameError

ARDUINO = """
#include <stdio.h>
struct Port {
    void begin(long) {}
    explicit operator bool() { return true; }
    void println(const char *text) { puts(text); }
};
static Port Serial;
"""
IDF_MAIN = "void app_main(void);\nint main(void) { app_main(); return 0; }\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each package, and of the plain files as ""."""
    folder = tmp_path_factory.mktemp("packages")
    network = every_kernel("mixed")
    for kind in (None, *PACKAGES):
        export_c(network, folder / (kind or ""), name="Net 1", package=kind)
    return {kind: folder / kind for kind in ("", *PACKAGES)}


def run(folder: Path, sources: list[Path], *flags: str) -> str:
    """Compile C files, each alone, link them, and return what the program prints."""
    need("gcc", "g++")
    includes = [f"-I{folder / name}" for name in ("include", "src") if (folder / name).is_dir()]
    objects: list[Path] = []
    for number, source in enumerate(sources):
        compiler = ["g++", "-x", "c++", *flags] if source.suffix == ".ino" else ["gcc", "-std=c99"]
        objects.append(folder.parent / f"{folder.name}{number}.o")
        command = [
            *compiler,
            "-O0",
            "-Wall",
            "-Wextra",
            "-Werror",
            *includes,
            "-c",
            str(source),
            "-o",
            str(objects[-1]),
        ]
        subprocess.run(command, check=True)
    program = folder.parent / f"{folder.name}.program"
    subprocess.run(["g++", "-o", program, *objects], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", PACKAGES)
def test_the_code_is_that_of_a_plain_export(kind: str, written: dict[str, Path]) -> None:
    for name in ("Net_1.h", "Net_1.c"):
        (found,) = written[kind].rglob(name)
        assert found.read_text() == (written[""] / name).read_text()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", PACKAGES)
def test_the_example_passes(kind: str, written: dict[str, Path]) -> None:
    folder = written[kind]
    sources = [*folder.rglob("*.c"), *folder.rglob("*.ino")]
    if kind == "arduino":
        (folder.parent / "Arduino.h").write_text(ARDUINO)
        (folder.parent / "host.ino").write_text("void setup();\nint main() { setup(); return 0; }\n")
        sources.append(folder.parent / "host.ino")
        printed = run(folder, sources, "-include", str(folder.parent / "Arduino.h"), "-Wno-unused")
        assert printed.splitlines()[-1] == "Net_1: all outputs as expected"
        return
    if kind == "esp-idf":
        (folder.parent / "idf.c").write_text(IDF_MAIN)
        sources.append(folder.parent / "idf.c")
    assert run(folder, sources) == "Net_1: 4 images, all outputs as expected\n"


def test_descriptions_are_of_their_form(written: dict[str, Path]) -> None:
    properties = dict(
        line.split("=", 1) for line in (written["arduino"] / "library.properties").read_text().splitlines()
    )
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"} <= {
        *properties
    }
    assert (written["arduino"] / "src" / properties["includes"]).is_file()
    manifest = json.loads((written["platformio"] / "library.json").read_text())
    assert (written["platformio"] / "include" / manifest["headers"]).is_file()
    (example,) = manifest["examples"]
    assert all((written["platformio"] / example["base"] / name).is_file() for name in example["files"])
    pack = ET.parse(written["cmsis-pack"] / "twoscale.Net_1.pdsc").getroot()
    files = [element.attrib["name"] for element in pack.iter("file")]
    assert len(files) == 4
    assert all((written["cmsis-pack"] / name).is_file() for name in files)
    for kind in ("zephyr", "esp-idf"):
        for listed in written[kind].rglob("CMakeLists.txt"):
            for name in re.findall(r"[\w/]+\.c\b", listed.read_text()):
                assert (listed.parent / name).is_file(), f"{listed}: {name}"


def test_platformio_packs_it(written: dict[str, Path], tmp_path: Path) -> None:
    need("pio")
    environment = {**os.environ, "PLATFORMIO_CORE_DIR": str(tmp_path / "core")}
    archive = tmp_path / "net.tar.gz"
    subprocess.run(["pio", "pkg", "pack", "-o", archive], cwd=written["platformio"], env=environment, check=True)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "src" / "Net_1.c").is_file()


def test_the_command_knows_every_package() -> None:
    assert tuple(PACKAGES) == PACKAGE_NAMES


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    network = every_kernel("uint8")
    with pytest.raises(UnknownNameError, match="unknown package 'ardunio': did you mean 'arduino'"):
        export_c(network, tmp_path / "out", package="ardunio")
    with pytest.raises(ConfigurationError, match="packages are for microcontrollers; expected target portable"):
        export_c(network, tmp_path / "out", target="native", package="arduino")
    assert not (tmp_path / "out").exists()


def test_a_package_can_have_the_link(tmp_path: Path) -> None:
    export_c(every_kernel("uint8"), tmp_path, name="net", package="zephyr", link=True)
    assert (tmp_path / "include" / "net_link.h").is_file()
    assert (tmp_path / "src" / "net_link.c").is_file()
