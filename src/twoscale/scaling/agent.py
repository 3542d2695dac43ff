"""The process between :func:`twoscale.scaling.launch.launch` and the ranks: torchrun, which dies with its parent.

python -m twoscale.scaling.agent PARENT_PID <arguments of torchrun>
"""

from __future__ import annotations

import sys

from twoscale.scaling.processes import die_with


def main() -> None:
    """Run PyTorch's launcher."""
    die_with(int(sys.argv[1]))
    from torch.distributed.run import main as torchrun

    torchrun(sys.argv[2:])


if __name__ == "__main__":
    main()
