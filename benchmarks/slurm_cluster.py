"""A real SLURM on this machine: one node or two, pretended GPUs, accounting or not.

Everything is in a temporary folder and on free ports; nothing outside it is read or changed.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
_START_SECONDS = 60


def missing_program(accounting: bool) -> str | None:
    """The first program that a cluster needs and this machine lacks, or None."""
    needed = (*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else ()))
    return next((name for name in needed if find(name) is None), None)


def find(program: str) -> str | None:
    """Where a program is; daemons are in folders that a user's path need not have."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Cluster:
    """Starts the daemons in a folder and ends them again.

    Args:
        folder: The folder, which exists.
        accounting: Whether sacct is to know anything.
        nodes: The names of its nodes, all of them this machine; empty for one of its own name.
        preemption: Whether jobs in the partition ``urgent`` take the place of others: those of
            ``main`` are requeued, those of ``cancelled`` are cancelled.
    """

    def __init__(
        self, folder: Path, accounting: bool, nodes: tuple[str, ...] = (), preemption: bool = False
    ) -> None:
        self.folder, self.accounting = folder, accounting
        self.nodes, self._preemption = nodes or (socket.gethostname(),), preemption
        self._slurmd: dict[str, subprocess.Popen[bytes]] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "spool", "db", "log"):
            (self.folder / name).mkdir()
        self._start_munge()
        ports = free_ports(3 + len(self.nodes))
        self._write_conf(ports[0], ports[1], ports[2], ports[3:])
        if self.accounting:
            self._start_accounting(ports[1], ports[2])
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self._until(self._idle, "idle nodes")

    def start_controller(self) -> None:
        """Start slurmctld."""
        self._controller = self._daemon("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])

    def stop_controller(self) -> None:
        """Let the controller be away; jobs run on."""
        self._controller.terminate()
        self._controller.wait(timeout=60)
        self._processes.remove(self._controller)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        conf = self.environment["SLURM_CONF"]
        self._slurmd[node] = self._daemon("slurmd", "-D", "-N", node, "-f", conf)

    def _idle(self) -> bool:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"],
            env=self._env(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode == 0 and set(done.stdout.split()) == {"idle"}

    def stop(self) -> None:
        subprocess.run(["scancel", "--me"], env=self._env(), capture_output=True, check=False)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *command: str) -> str:
        """Run a command on the cluster and return what it printed."""
        done = subprocess.run(command, env=self._env(), capture_output=True, text=True, check=True)
        return done.stdout

    def _env(self) -> dict[str, str]:
        return os.environ | self.environment

    def _daemon(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        path = find(program)
        assert path is not None
        log = (self.folder / "log" / f"{program}.out").open("ab")
        process = subprocess.Popen([path, *arguments], env=self._env(), stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _says(self, word: str, *command: str) -> bool:
        done = subprocess.run(command, env=self._env(), capture_output=True, text=True, check=False)
        return done.returncode == 0 and word in done.stdout

    def _until(self, true: object, what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not true():  # type: ignore[operator]
            if time.monotonic() > deadline:
                logs = {p.name: p.read_text()[-1500:] for p in (self.folder / "log").iterdir()}
                raise RuntimeError(f"waited {_START_SECONDS} s for {what}: {logs}")
            time.sleep(0.2)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        place = self.folder / "munge.socket"
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={place}",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge.seed", "--num-threads=10",
        )  # fmt: skip
        self._until(place.exists, "munge")

    def _start_accounting(self, dbd_port: int, sql_port: int) -> None:
        data, place = self.folder / "db", self.folder / "mysql.sock"
        install = find("mariadb-install-db")
        assert install is not None
        subprocess.run(
            [install, "--no-defaults", f"--datadir={data}", "--user=root",
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            capture_output=True, check=True,
        )  # fmt: skip
        self._daemon(
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={place}",
            f"--port={sql_port}", "--bind-address=127.0.0.1", "--user=root",
            f"--pid-file={self.folder}/mariadb.pid", "--innodb-buffer-pool-size=64M",
        )  # fmt: skip
        sql = (
            "create database slurm_acct_db; create user slurm@'%' identified by 'slurm'; "
            "create user slurm@localhost identified by 'slurm'; "
            "grant all on slurm_acct_db.* to slurm@'%'; "
            "grant all on slurm_acct_db.* to slurm@localhost;"
        )
        client = ["mariadb", "--no-defaults", f"--socket={place}", "-uroot"]
        self._until(lambda: self._says("1", *client, "-e", "select 1"), "MariaDB")
        subprocess.run([*client, "-e", sql], check=True)
        self._daemon("slurmdbd", "-D")
        cluster = ["sacctmgr", "-i", "add", "cluster", "heft"]
        self._until(lambda: self._says("heft", *cluster) or self._listed(), "slurmdbd")

    def _listed(self) -> bool:
        return self._says("heft", "sacctmgr", "-n", "list", "cluster")

    def _write_conf(
        self, ctld_port: int, dbd_port: int, sql_port: int, ports: Sequence[int]
    ) -> None:
        folder, host = self.folder, socket.gethostname()
        storage = (
            f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
            f"AccountingStoragePort={dbd_port}\nAccountingStoragePass={folder}/munge.socket\nJobAcctGatherType=jobacct_gather/none\n"
            "AccountingStorageEnforce=limits\n"
            if self.accounting
            else "AccountingStorageType=accounting_storage/none\n"
        )
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "RealMemory=4000 Gres=gpu:4 State=UNKNOWN"
            for name, port in zip(self.nodes, ports, strict=True)
        )
        more = (
            "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
            "PartitionName=urgent Nodes=ALL MaxTime=10 PriorityTier=9 PreemptMode=OFF\n"
            "PartitionName=cancelled Nodes=ALL MaxTime=10 PreemptMode=CANCEL\n"
            if self._preemption
            else ""
        )
        (folder / "slurm.conf").write_text(
            f"""ClusterName=heft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
KillWait=20
MinJobAge=300
ReturnToService=2
InactiveLimit=0
GresTypes=gpu
{storage}{nodes}
{more}PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=short Nodes=ALL MaxTime=10 State=UP
"""
        )
        (folder / "gres.conf").write_text("Name=gpu File=/dev/tty[0-3]\n")
        dbd = folder / "slurmdbd.conf"
        dbd.write_text(
            f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
        )
        dbd.chmod(0o600)


@contextmanager
def started(cluster: Cluster) -> Iterator[Cluster]:
    """Start a cluster in its folder, point this process's environment to it, and end it.

    Jobs compute with one thread each, because several run side by side on few cores.
    """
    cluster.folder.mkdir(exist_ok=True)
    before = dict(os.environ)
    os.environ.update(cluster.environment | {"OMP_NUM_THREADS": "1"})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        os.environ.clear()
        os.environ.update(before)
