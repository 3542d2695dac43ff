"""The C of a network as a library for a build system or package manager, with its self-test as an example."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from twoscale._codegen.c.common.source_base import SourceBase

__all__ = ["PACKAGES", "package"]

_VERSION = "1.0.0"
_TEMPLATES = "packages/"


def package(kind: str, source: SourceBase, code: Mapping[str, str], self_test: str) -> dict[str, str]:
    """Return the files of a package, by their paths.

    Args:
        kind: a key of PACKAGES.
        source: the network's.
        code: headers and C files, by name.
        self_test: text of a C file with a function NAME_selftest; with ``main`` for a CMSIS pack.
    """
    return PACKAGES[kind](_Parts(source, code, self_test))


class _Parts:
    """What packages are made of."""

    def __init__(self, source: SourceBase, code: Mapping[str, str], self_test: str) -> None:
        self._source = source
        self._code = code
        self.name = source.prefix
        self.self_test = self_test

    def text(self, template: str, **values: Any) -> str:
        """Return a template's text."""
        program = self._source.program
        facts = {"fingerprint": program.network.fingerprint, "arena_bytes": program.arena_bytes}
        return self._source.render(f"{_TEMPLATES}{template}.jinja", **facts, **values)

    def files(self, headers: str, sources: str) -> dict[str, str]:
        """Return the code, with headers and C files in these folders."""
        return {
            f"{headers if name.endswith('.h') else sources}/{name}": content for name, content in self._code.items()
        }


def _arduino(parts: _Parts) -> dict[str, str]:
    return {
        "library.properties": parts.text("library.properties"),
        "keywords.txt": parts.text("keywords.txt"),
        **parts.files("src", "src"),
        "examples/SelfTest/SelfTest.ino": parts.text("sketch.ino"),
        f"examples/SelfTest/{parts.name}_test.c": parts.self_test,
    }


def _platformio(parts: _Parts) -> dict[str, str]:
    manifest = {
        "name": parts.name,
        "version": _VERSION,
        "description": "An integer network as C without heap and floating point",
        "frameworks": "*",
        "platforms": "*",
        "headers": f"{parts.name}.h",
        "examples": [
            {"name": "selftest", "base": "examples/selftest/src", "files": ["main.c", f"{parts.name}_test.c"]}
        ],
    }
    return {
        "library.json": json.dumps(manifest, indent=2) + "\n",
        **parts.files("include", "src"),
        "examples/selftest/platformio.ini": parts.text("platformio.ini"),
        **_program(parts, "examples/selftest/src"),
    }


def _zephyr(parts: _Parts) -> dict[str, str]:
    return {
        "zephyr/module.yml": parts.text("zephyr_module.yml"),
        "CMakeLists.txt": parts.text("zephyr_cmake"),
        "Kconfig": parts.text("zephyr_kconfig"),
        **parts.files("include", "src"),
        "samples/selftest/CMakeLists.txt": parts.text("zephyr_sample_cmake"),
        "samples/selftest/prj.conf": f"CONFIG_{parts.name.upper()}=y\n",
        "samples/selftest/sample.yaml": parts.text("zephyr_sample.yaml"),
        **_program(parts, "samples/selftest/src"),
    }


def _esp_idf(parts: _Parts) -> dict[str, str]:
    main = "examples/selftest/main"
    return {
        "CMakeLists.txt": parts.text("idf_cmake"),
        "idf_component.yml": parts.text("idf_component.yml"),
        **parts.files("include", "src"),
        "examples/selftest/CMakeLists.txt": parts.text("idf_example_cmake"),
        f"{main}/CMakeLists.txt": parts.text("idf_example_main"),
        f"{main}/idf_component.yml": parts.text("idf_example.yml"),
        **_program(parts, main, esp_idf=True),
    }


def _cmsis_pack(parts: _Parts) -> dict[str, str]:
    return {
        f"twoscale.{parts.name}.pdsc": parts.text("pack.pdsc"),
        **parts.files("include", "src"),
        f"templates/{parts.name}_test.c": parts.self_test,
        "templates/main.c": parts.text("main.c", esp_idf=False),
    }


def _program(parts: _Parts, folder: str, *, esp_idf: bool = False) -> dict[str, str]:
    return {
        f"{folder}/main.c": parts.text("main.c", esp_idf=esp_idf),
        f"{folder}/{parts.name}_test.c": parts.self_test,
    }


PACKAGES: Mapping[str, Callable[[_Parts], dict[str, str]]] = {
    "arduino": _arduino,
    "platformio": _platformio,
    "zephyr": _zephyr,
    "esp-idf": _esp_idf,
    "cmsis-pack": _cmsis_pack,
}
"""Functions that return the files of each kind of package."""
