"""Whether a network fits into the flash and RAM of a microcontroller, and which target does if one does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.sizes import SizeReport
from twoscale.errors import ConfigurationError

__all__ = ["ALTERNATIVES", "Budget", "first_that_fits", "require_fit"]

_PORTABLE = ("portable", "small-ram")
_DSP = ("cortex-m4", "cortex-m4-small-ram")
_HELIUM = ("cortex-m55", "cortex-m55-small-ram")
ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_PORTABLE, _PORTABLE),
    **dict.fromkeys(_DSP, (*_DSP, *_PORTABLE)),
    **dict.fromkeys(_HELIUM, (*_HELIUM, *_DSP, *_PORTABLE)),
}
"""Targets for microcontrollers, and for each the targets that the same cores can run, usually the fastest first."""

_LARGEST = 3
"""How many layers a message names."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a network may take."""

    ram: int | None = None
    """For arena, input, output and stack; None means any number."""
    flash: int | None = None
    """For constants and code; None means any number."""

    def fits(self, sizes: SizeReport) -> bool:
        """Whether a network of these sizes fits."""
        return not self._excess(sizes)

    def _excess(self, sizes: SizeReport) -> list[str]:
        """Return what is over, in words."""
        assert sizes.footprint is not None
        ram = (
            f"arena {sizes.arena_bytes:,}, input {sizes.input_bytes:,}, output {sizes.output_bytes:,}, "
            f"stack {sizes.footprint.stack_bytes:,}"
        )
        flash = f"constants {sizes.constant_bytes:,}, code {sizes.footprint.code_bytes:,}"
        checks = (("RAM", sizes.ram_bytes, self.ram, ram), ("flash", sizes.flash_bytes, self.flash, flash))
        return [
            f"{used:,} bytes of {kind} ({parts}), {used - most:,} more than the {most:,} allowed"
            for kind, used, most, parts in checks
            if most is not None and used > most
        ]


def first_that_fits(target: str, budget: Budget, sizes_for: Callable[[str], SizeReport]) -> str | None:
    """Return the first target for the same cores with which a network fits, or None.

    Args:
        target: of these cores.
        budget: what it may take.
        sizes_for: returns the sizes of the network with a target.
    """
    return next((name for name in ALTERNATIVES[target] if budget.fits(sizes_for(name))), None)


def require_fit(
    target: str, budget: Budget, sizes: SizeReport, sizes_for: Callable[[str], SizeReport], options: str = ""
) -> None:
    """Check that a network fits.

    Args:
        target: what it is exported for.
        budget: what it may take.
        sizes: of its export.
        sizes_for: returns its sizes with a target, without options.
        options: of its export, as the end of a phrase.

    Raises:
        ConfigurationError: it does not fit. Says what is over, by how much, and which target would fit.
    """
    if excess := budget._excess(sizes):
        needed = " and ".join(excess)
        advice = _advice(target, budget, sizes_for)
        raise ConfigurationError(f"{printable(sizes.name)} takes {needed} with target {target}{options}; {advice}")


def _advice(target: str, budget: Budget, sizes_for: Callable[[str], SizeReport]) -> str:
    sizes = {name: sizes_for(name) for name in ALTERNATIVES[target]}
    if (fitting := first_that_fits(target, budget, sizes.__getitem__)) is not None:
        found = sizes[fitting]
        return f"target {fitting} fits: {found.ram_bytes:,} bytes of RAM and {found.flash_bytes:,} of flash"
    parts = []
    least_ram = min(sizes.values(), key=lambda found: found.ram_bytes)
    if budget.ram is not None and least_ram.ram_bytes > budget.ram:
        name = next(name for name, found in sizes.items() if found is least_ram)
        layer = max(least_ram.layers, key=lambda layer: layer.live_bytes)
        parts.append(
            f"no target takes less RAM than {name} with {least_ram.ram_bytes:,} bytes, most of them for "
            f"{printable(layer.name)} ({layer.live_bytes:,} of the arena)"
        )
    least_flash = min(sizes.values(), key=lambda found: found.flash_bytes)
    if budget.flash is not None and least_flash.flash_bytes > budget.flash:
        largest = sorted(least_flash.layers, key=lambda layer: -layer.constant_bytes)[:_LARGEST]
        named = ", ".join(f"{printable(layer.name)} {layer.constant_bytes:,}" for layer in largest)
        parts.append(
            "targets portable and small-ram store weights of 4 bits in half a byte, of 2 bits in a quarter; these "
            f"layers take the most and need fewer weights or bits first: {named}"
        )
    return "; ".join(parts) or "no target fits both RAM and flash"
