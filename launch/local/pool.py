"""Worker processes on this machine, and the events that they report."""

import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec, to_json
from launch.local.settings import LocalSettings


@dataclass
class Worker:
    """One or more processes that train one stage at a time.

    Attributes:
        number: Its number, from 0.
        processes: Its processes, by rank.
        stage: What it is working on.
    """

    number: int
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)
    stage: StageSpec | None = None


class Pool:
    """Workers that run stages side by side.

    Args:
        output_dir: Where the store is.
        logs: The folder for what the processes print.
        settings: How many workers, of how many processes, on which GPUs.

    Raises:
        UserError: There are fewer GPUs than the workers need.
    """

    def __init__(self, output_dir: Path, logs: Path, settings: LocalSettings) -> None:
        self._output_dir, self._logs = output_dir, logs
        self._size = settings.gpus_per_stage
        self._gpus = choose_gpus(settings.gpus, settings.workers, settings.gpus_per_stage)
        self._threads = max(1, (os.cpu_count() or 1) // (settings.workers * self._size))
        self._events: queue.Queue[tuple[Worker, subprocess.Popen[str], dict[str, Any]]]
        self._events = queue.Queue()
        self.workers = [Worker(number) for number in range(settings.workers)]

    def idle(self) -> Worker | None:
        """A worker without a stage, or None."""
        return next((worker for worker in self.workers if worker.stage is None), None)

    def give(
        self,
        worker: Worker,
        stage: StageSpec,
        upcoming: Sequence[StageSpec],
        text: OtherText | None,
    ) -> None:
        """Give a stage to a worker, whose processes are started when they are needed.

        Args:
            worker: An idle worker.
            stage: The stage; its parents must be finished.
            upcoming: The stages that will be trained on it.
            text: The text that it is measured on; None for none.
        """
        message = {
            "stage": to_json(stage),
            "upcoming": [to_json(one) for one in upcoming],
            "text": dataclasses.asdict(text) if text else None,
        }
        line = json.dumps(message) + "\n"
        if any(process.poll() is not None for process in worker.processes):
            self.bury(worker)  # it has died while it had nothing to do
        if not worker.processes:
            self._start(worker)
        worker.stage = stage
        for process in worker.processes:
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                self._say_died(worker, process, "its process ended before it had begun")

    def next_event(self, timeout: float) -> tuple[Worker, dict[str, Any]] | None:
        """The next event that a worker reports.

        Args:
            timeout: Seconds to wait for it.

        Returns:
            The worker and the event: ``progress``, ``waiting``, ``complete``, ``reused``,
            ``failed`` or ``interrupted``, or ``died`` with a ``text`` where a process ended
            unexpectedly. None where nothing came in time.
        """
        try:
            worker, process, event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        return (worker, event) if process in worker.processes else None  # else it has been buried

    def interrupt(self) -> None:
        """Ask every process that runs a stage to stop with a checkpoint."""
        for worker in self.workers:
            for process in worker.processes if worker.stage else ():
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all processes, and wait for none; this may be called by a signal's handler."""
        for worker in self.workers:
            for process in worker.processes:
                process.kill()

    def close(self) -> None:
        """End all processes: idle ones by closing their input, others by killing them."""
        for worker in self.workers:
            self._end(worker, kill=worker.stage is not None)

    def bury(self, worker: Worker) -> None:
        """Kill what is left of a worker that died, so that it can be used again."""
        self._end(worker, kill=True)

    def _end(self, worker: Worker, kill: bool) -> None:
        processes, worker.processes, worker.stage = worker.processes, [], None
        for process in processes:
            if kill:
                process.kill()
            assert process.stdin is not None
            try:
                process.stdin.close()
            except OSError:  # it has ended, and what was to be sent to it has no reader
                continue
        for process in processes:
            process.wait()

    def _start(self, worker: Worker) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        for rank in range(self._size):
            environment = os.environ | {"OMP_NUM_THREADS": str(self._threads)}
            if self._gpus:
                first = worker.number * self._size
                mine = self._gpus[first : first + self._size]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
            if self._size > 1:
                environment |= rank_environment(rank, self._size, rank, port)
            with (self._logs / f"worker-{worker.number}-{rank}.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "launch.local.worker", str(self._output_dir)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches only the parent
                )
            worker.processes.append(process)
            threading.Thread(target=self._listen, args=(worker, process, rank), daemon=True).start()

    def _listen(self, worker: Worker, process: "subprocess.Popen[str]", rank: int) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if rank == 0 and line.endswith("\n"):  # else its death has cut the line short
                self._events.put((worker, process, json.loads(line)))
        status = process.wait()
        # Of processes that stop together, the first one says so, perhaps after another has ended.
        if worker.stage is not None and (status != 0 or rank == 0):
            log = self._logs / f"worker-{worker.number}-{rank}.log"
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            self._say_died(worker, process, f"its process ended with {how}; log: {log}")

    def _say_died(self, worker: Worker, process: "subprocess.Popen[str]", text: str) -> None:
        self._events.put((worker, process, {"event": "died", "text": text}))


def choose_gpus(asked: Any, workers: int, gpus_per_stage: int) -> list[int]:
    """The GPUs that a pool deals out.

    Args:
        asked: ``hydra.launcher.gpus``: ``auto`` or a list of numbers.
        workers: How many stages run at a time.
        gpus_per_stage: How many processes train one stage together.

    Returns:
        Their numbers among the visible ones; empty for a machine without GPUs.

    Raises:
        UserError: There are fewer than the workers need.
    """
    if asked == "auto":
        import torch

        gpus = list(range(torch.cuda.device_count()))
    else:
        gpus = [int(number) for number in asked]
    needed = workers * gpus_per_stage
    if gpus and needed > len(gpus):
        raise UserError(
            f"hydra.launcher.workers={workers} with gpus_per_stage={gpus_per_stage} needs {needed} "
            f"GPUs and there are {len(gpus)}; use "
            f"hydra.launcher.workers={max(1, len(gpus) // gpus_per_stage)}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [int(visible.split(",")[n]) for n in gpus] if visible and gpus else gpus


def rank_environment(rank: int, world: int, local_rank: int, port: int) -> dict[str, str]:
    """The environment variables that torch.distributed reads.

    Args:
        rank: The process's number.
        world: How many processes there are.
        local_rank: The process's number on this machine.
        port: A free port of the first process's machine, which is this one.

    Returns:
        The variables.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
