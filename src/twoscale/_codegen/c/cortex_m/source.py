"""Program → text, with kernels for a Cortex-M core."""

from __future__ import annotations

from twoscale._codegen.c.cortex_m.dsp import FasterWithDsp
from twoscale._codegen.c.cortex_m.helium import FasterWithHelium
from twoscale._codegen.c.cortex_m.kernels import DSP, HELIUM
from twoscale._codegen.c.portable.lowering import lower
from twoscale._codegen.c.portable.source import Source
from twoscale._codegen.c.small_ram.lowering import lower as lower_rows
from twoscale._codegen.c.small_ram.source import RowSource
from twoscale._codegen.targets import Target
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["source_of"]


def source_of(network: IntegerNetwork, name: str, target: Target, *, binary: bool = False) -> Source:
    """Return the C of a network; see SourceBase.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    faster: FasterWithDsp | FasterWithHelium
    if target.helium:
        faster, library = FasterWithHelium(network), HELIUM
    else:
        faster, library = FasterWithDsp(network, winograd=target.weights_in_flash == "winograd"), DSP
    if target.little_ram:
        return RowSource(lower_rows(network, faster), name, target, binary, library)
    return Source(lower(network, faster), name, target, binary, library)
