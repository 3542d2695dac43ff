"""C for any target: an integer network as a header, a source, a self-test and a Makefile."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.budget import ALTERNATIVES, Budget, first_that_fits, require_fit
from twoscale._codegen.c.common.selftest import default_images, self_test
from twoscale._codegen.c.common.sizes import LayerSize, SizeReport, size_report, size_table
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.packages import PACKAGES
from twoscale._codegen.c.packages import package as package_files
from twoscale._codegen.targets import TARGETS, Target, WeightsInFlash
from twoscale._files import record_to_json, write_files
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError, UnknownNameError

__all__ = [
    "Budget",
    "ExportResult",
    "LayerSize",
    "SizeReport",
    "default_images",
    "export_c",
    "fitting_target",
    "require_budget",
    "sizes_of",
]

_MAKEFILE = "Makefile"


_BACK_ENDS = ("cortex_m", "portable", "small_ram", "vector")
"""Packages with a function ``source_of``; ``Target.back_end`` is the name of one, with a hyphen. Each is imported when
it writes C: programs that run a compiled library import this package without them."""


def _source_of(network: IntegerNetwork, name: str, target: Target) -> SourceBase:
    """Return the C of a network."""
    back_end = target.back_end.replace("-", "_")
    assert back_end in _BACK_ENDS
    module = importlib.import_module(f"twoscale._codegen.c.{back_end}.source")
    source: SourceBase = module.source_of(network, name, target)
    return source


def _sizes_of(source: SourceBase) -> SizeReport:
    return size_report(source.program, source.name, source.pixel_bytes, source.footprint)


def sizes_of(
    network: IntegerNetwork, target: str, name: str | None = None, weights_in_flash: WeightsInFlash = "int8"
) -> SizeReport:
    """Return the sizes of a network's C without writing it.

    Raises:
        ConfigurationError: integers alone cannot compute the network; names the layer.
    """
    variant = replace(TARGETS[target], weights_in_flash=weights_in_flash)
    return _sizes_of(_source_of(network, network.name if name is None else name, variant))


def require_budget(
    network: IntegerNetwork,
    target: str,
    budget: Budget,
    *,
    name: str | None = None,
    weights_in_flash: WeightsInFlash = "int8",
) -> None:
    """Check that a network fits.

    Raises:
        ConfigurationError: it does not, or the target is not for microcontrollers.
    """
    if budget == Budget():
        return
    if target not in ALTERNATIVES:
        raise ConfigurationError(
            f"max_ram and max_flash are for microcontrollers; expected target {', '.join(ALTERNATIVES)}, got {target}"
        )
    sizes = sizes_of(network, target, name, weights_in_flash)
    options = "" if weights_in_flash == "int8" else f" and {weights_in_flash} weights"
    require_fit(target, budget, sizes, lambda chosen: sizes_of(network, chosen, name), options)


def fitting_target(network: IntegerNetwork, budget: Budget) -> str:
    """Return the target of plain C with which a network fits.

    Raises:
        ConfigurationError: it fits with none; says what is over and by how much.
    """
    target = first_that_fits("portable", budget, lambda chosen: sizes_of(network, chosen))
    if target is None:
        require_budget(network, "small-ram", budget)
    return target or "small-ram"


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    folder: str
    files: tuple[str, ...]
    """Names in the folder."""
    prefix: str
    """Prefix of public C names and files: the network's name as an identifier."""
    sizes: SizeReport

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(Path(self.folder) / name for name in self.files)


def export_c(
    network: IntegerNetwork,
    folder: str | Path,
    *,
    target: str = "portable",
    name: str | None = None,
    inputs: NDArray[Any] | Sequence[NDArray[Any]] | None = None,
    max_ram: int | None = None,
    max_flash: int | None = None,
    link: bool = False,
    camera: bool = False,
    log_mel: int | None = None,
    package: str | None = None,
    weights_in_flash: WeightsInFlash = "int8",
) -> ExportResult:
    """Write a network as C.

    The target "portable" is C99 with no heap, no recursion, no floating point and no state; the caller provides the
    memory. The same holds for "small-ram", whose layers compute row by row and need far less memory. The other targets
    compute batches with vector kernels and threads. The integers are the same.

    Args:
        network: on the grid (any scheme but those with free float multipliers).
        target: "portable" or "small-ram" for microcontrollers, "cortex-m4" or "cortex-m4-small-ram" for those with the
            DSP extension, "cortex-m55" or "cortex-m55-small-ram" for those with Helium; "native" for this
            and other big CPUs, with the instruction set chosen at run time; "amx", "avx512vnni",
            "avxvnni", "avx2" or "sse41" (x86) or "i8mm", "dotprod" or "neon" (AArch64) for one.
        folder: where to write; created if it does not exist. Files of the same names are replaced, all of them or none.
        name: prefix of files and public names, turned into an identifier; by default the network's name.
        inputs: quantized images (N, C, H, W) of the network's input type for the self-test; by default four generated
            ones. Only the self-test contains them. Of a network with several inputs one array for each.
        max_ram: most bytes of RAM for arena, input, output and stack. Nothing is written if the network takes more.
            Of a target for microcontrollers, as is the next.
        max_flash: most bytes of flash for constants and code.
        link: whether to write NAME_link.h and NAME_link.c too, with which a board runs the network for ``verify``. Of a
            target for microcontrollers.
        camera: whether to write NAME_camera.h and NAME_camera.c too, which resize and normalize the pixels of cameras.
            Of a network that takes pictures and a target for microcontrollers.
        log_mel: samples of sound per second, to write NAME_log_mel.h and NAME_log_mel.c too, which compute the features
            of twoscale.data.LogMel. Of a network that takes grey pictures (frames, channels) and a target for
            microcontrollers.
        package: "arduino", "platformio", "zephyr", "esp-idf" or "cmsis-pack" for a library of that form, with the
            self-test as an example. Of a target for microcontrollers.
        weights_in_flash: "winograd" stores transformed weights of two bytes, 3.56 times as many bytes, for convolutions
            of 3×3 with a stride of 1 that then take fewer instructions. Of the target "cortex-m4".

    Returns:
        The files: NAME.h, NAME.c (and, if not portable, NAME_kernels.h), NAME_test.c, Makefile, NAME_sizes.txt and
        NAME_sizes.json.

    Raises:
        ConfigurationError: integers alone cannot compute the network (names the layer), the inputs do not fit it, or
            it takes more than ``max_ram`` or ``max_flash`` (names the target that would fit, if one does).
        UnknownNameError: there is no such target or package.
        TwoscaleError: the folder cannot be written.
    """
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    if weights_in_flash != "int8" and target != "cortex-m4":
        raise ConfigurationError(f"weights_in_flash is {weights_in_flash}; expected target cortex-m4, got {target}")
    images = default_images(network) if inputs is None else [inputs] if isinstance(inputs, np.ndarray) else inputs
    called = network.name if name is None else name
    require_budget(network, target, Budget(max_ram, max_flash), name=called, weights_in_flash=weights_in_flash)
    source = _source_of(network, called, replace(TARGETS[target], weights_in_flash=weights_in_flash))
    report = _sizes_of(source)
    if camera and target not in ALTERNATIVES:
        raise ConfigurationError(
            f"camera is for microcontrollers; expected target {', '.join(ALTERNATIVES)}, got {target}"
        )
    if log_mel is not None and target not in ALTERNATIVES:
        raise ConfigurationError(
            f"log_mel is for microcontrollers; expected target {', '.join(ALTERNATIVES)}, got {target}"
        )
    if link and target not in ALTERNATIVES:
        raise ConfigurationError(
            f"link is for microcontrollers; expected target {', '.join(ALTERNATIVES)}, got {target}"
        )
    code = source.texts() | (source.link() if link else {}) | (source.camera() if camera else {})
    if log_mel is not None:
        code |= source.log_mel(log_mel)
    if package is None:
        texts = code | {f"{source.prefix}_test.c": self_test(source, images), _MAKEFILE: source.makefile()}
    elif package not in PACKAGES:
        raise UnknownNameError("package", package, PACKAGES)
    elif target not in ALTERNATIVES:
        raise ConfigurationError(
            f"packages are for microcontrollers; expected target {', '.join(ALTERNATIVES)}, got {target}"
        )
    else:
        texts = package_files(package, source, code, self_test(source, images, has_main=False))
    texts |= {
        f"{source.prefix}_sizes.txt": size_table(report),
        f"{source.prefix}_sizes.json": record_to_json(report),
    }
    write_files(Path(folder), texts)
    return ExportResult(str(folder), tuple(texts), source.prefix, report)
