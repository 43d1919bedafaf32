"""The processes of the other ranks: started by the first, watched by it, and ended with it."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NoReturn

from ...config import EngineConfig
from ...wire.launch import encode_config, engine_environment
from .messages import Loaded, Stop, Told, decode_loaded, encode

logger = logging.getLogger(__name__)

RANK_MODULE = "peftserve.server.engine.parallel"
PATIENCE = 10.0  # seconds for a rank to end by itself
NOTICE_SECONDS = 1.0  # for the system to say that a process has ended, whose connection is known to be gone


class RankLost(RuntimeError):
    """Another rank has ended or failed: no step can run any more. The message says which and how."""


class RankProcesses:
    """The other ranks' processes and the pipes to them.

    meeting: the file at which all ranks meet.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Start them. config: of the engine, whose threads the ranks share where it does not say how many."""
        self._folder = _meeting_place(config.store)
        self.meeting = self._folder / "meeting"
        self.config = with_threads(config)
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lost: str | None = None
        self._noticed = threading.Event()
        self._ending = False
        for rank in range(1, config.tensor_parallel_size):
            self._start(rank)

    def _start(self, rank: int) -> None:
        ours, theirs = Pipe()
        arguments = [str(rank), str(theirs.fileno()), str(self.meeting), encode_config(self.config)]
        process = subprocess.Popen(
            [sys.executable, "-m", RANK_MODULE, *arguments],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env=engine_environment(),
        )
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(rank, process), name=f"rank-{rank}", daemon=True).start()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        if self._ending:
            return
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        self._lost = f"rank {rank} of {len(self._processes) + 1} (process {process.pid}) {how}"
        logger.error("%s: no step can run without it", self._lost)
        self._noticed.set()

    def check(self) -> None:
        """Raise RankLost if a rank has ended."""
        if self._lost is not None:
            raise RankLost(self._lost)

    def fail(self) -> NoReturn:
        """Raise RankLost: a step has failed here, after which ranks no longer agree on what comes next."""
        self.wait_for_a_loss(NOTICE_SECONDS)
        raise RankLost("a step failed on one rank of several")

    def wait_for_a_loss(self, seconds: float | None = None) -> None:
        """Wait until a rank has ended, for so long at most. Raises RankLost once one has."""
        self._noticed.wait(seconds)
        self.check()

    def tell(self, message: Told) -> None:
        """Send a message to all other ranks, encoded once. Raises RankLost."""
        data = encode(message)
        try:
            for pipe in self._pipes:
                pipe.send_bytes(data)
        except OSError:
            self.fail()

    def answers(self) -> list[Loaded]:
        """Return what the ranks have said since the last call. Raises RankLost."""
        found = []
        try:
            for pipe in self._pipes:
                while pipe.poll(0):
                    found.append(decode_loaded(pipe.recv_bytes()))
        except (OSError, EOFError):
            self.fail()
        return found

    @property
    def count(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self, patience: float = PATIENCE) -> None:
        """End the processes, those that do not end by themselves in `patience` seconds by force."""
        self._ending = True
        for pipe in self._pipes:
            try:
                pipe.send_bytes(encode(Stop()))
            except OSError:
                logger.debug("a rank has ended before it was told to")
        for process in self._processes:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for pipe in self._pipes:
            pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _meeting_place(store: Path | None) -> Path:
    """Return an empty folder for what ranks share as files: in the state folder, where a server has one."""
    if store is None:
        return Path(tempfile.mkdtemp(prefix="peftserve-ranks-"))
    folder = store.parent / "ranks"
    shutil.rmtree(folder, ignore_errors=True)  # of an engine that was killed
    folder.mkdir(parents=True, mode=0o700)
    return folder


def with_threads(config: EngineConfig) -> EngineConfig:
    """Return the configuration with a share of the cores for each rank, where it does not say how many threads."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return replace(config, num_threads=config.num_threads or max(cores // config.tensor_parallel_size, 1))
