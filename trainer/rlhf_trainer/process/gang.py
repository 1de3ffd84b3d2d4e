"""This node's ranks, run by torch's elastic agent (what torchrun runs) and watched.

Called by `launch`. The agent alone does not do: it turns every failure into 1, forgets the codes
when it is stopped itself, and of ranks that fail within one poll it names the lowest. So it runs in
a thread, where it installs no signal handlers, and the main thread notes how each rank ends and
hears signals even while the agent waits for other nodes.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.launcher.api import LaunchConfig

from rlhf_api.names import ExitCode
from rlhf_trainer.process.edge import StopRequest
from rlhf_trainer.process.outcome import RankEnd, read_outcome
from rlhf_trainer.process.place import Place

logger = logging.getLogger("rlhf_trainer.launch")

POLL_SECONDS = 0.05
RENDEZVOUS_SECONDS = 1800
"""How long a node waits for the others to start."""
EXIT_BARRIER_SECONDS = 30.0
"""How long a node that is done waits for the others: node 0 holds the store that all use."""
START_SECONDS = 2.0
"""How long after a request to stop ranks may still come to life and be told."""
REAP_SECONDS = 3.0
"""How long after killing its ranks a node waits for them to be gone."""


class Gang:
    """The ranks of this node.

    Attributes:
        error: what kept the ranks from starting, if anything did.
        port: where they meet.
    """

    def __init__(
        self,
        place: Place,
        command: Sequence[str],
        folder: Path,
        stop: StopRequest,
        patience: float,
        *,
        watched: bool,
    ) -> None:
        """Prepare to run `command` in every rank.

        Args:
            place: this node.
            command: program and arguments.
            folder: where the ranks leave their outcomes.
            stop: set by signals.
            patience: seconds from a request to stop until ranks that are still there are killed.
            watched: whether NCCL's watchdog aborts ranks whose peers do not answer.
        """
        self.error: BaseException | None = None
        self._place = place
        self._folder = folder
        self._stop = stop
        self._patience = patience
        self._watched = watched
        self._codes: dict[int, int] = {}
        self._times: dict[int, float] = {}
        self._signalled: set[int] = set()
        self._killed: set[int] = set()
        self._listener: TCPStore | None = None
        self.port = self._free_port() if place.port == 0 else place.port
        self._agent = LocalElasticAgent(
            spec=self._spec(command),
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
            exit_barrier_timeout=EXIT_BARRIER_SECONDS,
        )
        self._thread = threading.Thread(target=self._run_agent, name="agent", daemon=True)

    def run(self) -> list[RankEnd]:
        """Run the ranks to their end; how each of them ended that was started."""
        # That torch cannot hear signals in a thread is the point; its warning would alarm readers.
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(
            lambda record: "register signal handlers" not in record.getMessage()
        )
        self._thread.start()
        while self._thread.is_alive() and not self._given_up():
            self._note_ends()
            if self._stop.since is not None:
                self._forward_stop()
            self._reap_orphans()
            self._thread.join(POLL_SECONDS)
        self._note_ends()
        # What a killed rank started, a data loader say, must not live on beside the next attempt.
        for pid in self._pids().values():
            _kill_group(pid)
        return [self._end(rank) for rank in self._pids()]

    def _spec(self, command: Sequence[str]) -> WorkerSpec:
        place = self._place
        defaults = LaunchConfig(
            place.nodes,
            place.nodes,
            place.processes,
            logs_specs=DefaultLogsSpecs(log_dir=str(self._folder)),
        )
        return WorkerSpec(
            role="rank",
            local_world_size=place.processes,
            rdzv_handler=StaticTCPRendezvous(
                place.address, self.port, place.node, place.nodes, place.run, RENDEZVOUS_SECONDS
            ),
            entrypoint=command[0],
            args=tuple(command[1:]),
            max_restarts=0,
            master_addr=place.address,
            master_port=self.port,
            numa_options=defaults.numa_options,
        )

    def _free_port(self) -> int:
        # Held until the agent's store shares the listener, so that no other process can take it.
        self._listener = TCPStore(
            self._place.address, 0, 1, is_master=True, wait_for_workers=False, multi_tenant=True
        )
        return self._listener.port

    def _run_agent(self) -> None:
        try:
            result = self._agent.run()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self.error = error
            return
        for rank, failure in result.failures.items():
            self._codes.setdefault(rank, failure.exitcode)

    def _pids(self) -> dict[int, int]:
        """Process of each rank that was started."""
        workers = self._agent.get_worker_group().workers
        return {worker.global_rank: worker.id for worker in workers if worker.id is not None}

    def _note_ends(self) -> None:
        """Note when and how ranks ended; leaves them for the agent to reap."""
        now = time.time()
        for rank, pid in self._pids().items():
            if rank in self._times:
                continue
            try:
                siginfo = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                # The agent was quicker; it tells the code when it is done.
                self._times[rank] = now
                continue
            if siginfo is not None:
                exited = siginfo.si_code == os.CLD_EXITED
                self._codes[rank] = siginfo.si_status if exited else -siginfo.si_status
                self._times[rank] = now

    def _forward_stop(self) -> None:
        """Tell each rank once; kill those that do not heed it in time, and what they started."""
        late = self._stop.age() > self._patience
        for rank, pid in self._pids().items():
            if rank in self._times:
                continue
            if rank not in self._signalled:
                self._signalled.add(rank)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if late and rank not in self._killed:
                logger.warning("rank %d does not stop: killing it", rank)
                self._killed.add(rank)
                _kill_group(pid)

    def _given_up(self) -> bool:
        """Whether to leave though the agent still waits: for other nodes, or for a stuck kernel."""
        if self._stop.since is None:
            return False
        if not self._pids():
            return self._stop.age() > START_SECONDS
        return self._stop.age() > self._patience + REAP_SECONDS

    def _reap_orphans(self) -> None:
        """Collect what ranks left behind, as PID 1 must; never a rank, which is the agent's."""
        ranks = set(self._pids().values())
        if len(ranks) < self._place.processes:
            return
        with suppress(ChildProcessError):
            while siginfo := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if siginfo.si_pid in ranks:
                    return
                os.waitpid(siginfo.si_pid, 0)

    def _end(self, rank: int) -> RankEnd:
        outcome = read_outcome(self._folder, rank)
        raw = self._codes.get(rank, 0 if rank in self._times else -signal.SIGKILL)
        late = rank in self._killed
        code = raw if raw >= 0 else 128 - raw
        when = self._times.get(rank, time.time())
        if outcome is not None:
            code, when = outcome.result.exit_code, outcome.time
        elif late:
            code = ExitCode.STOPPED
        elif self._watched and raw == -signal.SIGABRT:
            code = ExitCode.PEER_LOST
        return RankEnd(rank, int(code), when, outcome, -raw if raw < 0 else None, late)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
