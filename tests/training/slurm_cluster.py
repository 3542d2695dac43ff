"""A Slurm cluster of two nodes on this machine, from Debian's packages slurmctld, slurmd, slurm-client and munge.

Each node is a network namespace with a host name of its own, and all share a file that names the nodes. Nothing is
written outside one folder. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "netns"
TOOLS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "srun", "unshare")
CONFIGURATION = """\
ClusterName=two
SlurmctldHost=node0(10.231.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ReturnToService=2
NodeName=node0 NodeAddr=10.231.0.1 CPUs=2 State=UNKNOWN
NodeName=node1 NodeAddr=10.231.0.2 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=node0,node1 Default=YES State=UP OverSubscribe=NO
"""


class Cluster:
    """Two nodes that take jobs.

    Args:
        name: of their network namespaces.
        folder: for everything that Slurm writes.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self.folder = name, folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def on(self, node: int, words: list[str]) -> list[str]:
        """Return a command that runs another one on a node."""
        script = f'hostname node{node}; mount --bind "{self.folder}/hosts" /etc/hosts; exec "$@"'
        inside = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", *words]
        return ["ip", "netns", "exec", f"{self._name}-{node}", *inside]

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        (self.folder / "state").mkdir()
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n10.231.0.1 node0\n10.231.0.2 node1\n")
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(folder=self.folder))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # no cgroup is made
        subprocess.run(["mungekey", "--create", f"--keyfile={self.folder}/munge.key"], check=True)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge.{name}" for option, name in names.items()]
        self._daemon(["munged", "--foreground", "--force", *files])
        while not (self.folder / "munge.socket").exists():
            time.sleep(0.05)
        self._daemon(self.on(0, ["slurmctld", "-D"]))
        for node in (0, 1):
            self._daemon(self.on(node, ["slurmd", "-D"]))
        deadline = time.monotonic() + 60
        while self.call(["sinfo", "--noheader", "--format=%T %D"]).split() != ["idle", "2"]:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def _daemon(self, words: list[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    def call(self, words: list[str], timeout: float = 60.0) -> str:
        """Run a command of Slurm's on node 0, and return its output, errors too."""
        done = subprocess.run(
            self.on(0, words), env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )
        return done.stdout + done.stderr

    def logs(self) -> str:
        """Return what the daemons wrote."""
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """End the daemons, the jobs with them."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, or skip the test where this machine cannot."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is missing (Debian: slurmctld, slurmd, slurm-client, munge)")
    name = f"u{os.getpid() % 10**8}"
    made = subprocess.run([SCRIPT, "bridge", name, "1000", "2"], capture_output=True, text=True)
    if made.returncode == 3:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    found = Cluster(name, folder)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        subprocess.run([SCRIPT, "down", name], check=True)
