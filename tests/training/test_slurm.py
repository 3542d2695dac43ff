"""The documented batch script under Slurm, and a study that srun starts, on two nodes of a cluster made here."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests import sweep
from tests.training.slurm_cluster import Cluster, cluster
from twoscale._files import read_record
from twoscale.scaling import load_study
from twoscale.training import RunRecord

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> object:
    if not sweep.whole():
        pytest.skip("takes minutes: --sweep all runs jobs under Slurm")
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        # The commands of this interpreter's environment, whether or not they are installed as scripts.
        (found.folder / "bin").mkdir()
        for name, module in (("torchrun", "torch.distributed.run"), ("twoscale", "twoscale")):
            file = found.folder / "bin" / name
            file.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            file.chmod(0o755)
        found.environment["PATH"] = f"{found.folder / 'bin'}{os.pathsep}{found.environment['PATH']}"
        yield found


def submit(slurm: Cluster, name: str, words: list[str]) -> str:
    """Submit a batch script, wait for its end, and return its output."""
    said = slurm.call(["sbatch", "--wait", "--output=job-%j.txt", name, *words], timeout=900)
    found = re.search(r"Submitted batch job (\d+)", said)
    assert found is not None, said
    return (slurm.folder / f"job-{found[1]}.txt").read_text()


def test_the_documented_batch_script(slurm: Cluster) -> None:
    scripts = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(scripts) == 1
    (slurm.folder / "train.sbatch").write_text(scripts[0])
    words = ["net", "--data", "digits", "--epochs", "1", "--batch-size", "64", "--device", "cpu", "--threads", "1"]
    output = submit(slurm, "train.sbatch", [*words, "--out", "runs/slurm"])
    print(output)
    assert (slurm.folder / "runs" / "slurm" / "run.json").exists(), output
    assert read_record(slurm.folder / "runs" / "slurm" / "run.json", RunRecord).world_size == 2


def test_srun_makes_one_study_of_two_nodes(slurm: Cluster) -> None:
    script = '#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\nsrun twoscale scale "$@"\n'
    (slurm.folder / "scale.sbatch").write_text(script)
    words = ["net", "--data", "digits", "--device", "cpu", "--base-batch", "16", "--world-sizes", "1", "--steps", "2",
             "--repeats", "1", "--sections", "wire", "--out", "study"]  # fmt: skip
    output = submit(slurm, "scale.sbatch", words)
    print(output)
    assert (slurm.folder / "study" / "study.json").exists(), output
    found = load_study(slurm.folder / "study" / "study.json")
    assert [one.name for one in found.results.hosts] == ["node0", "node1"]
    assert found.results.failures == ()
