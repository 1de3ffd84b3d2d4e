"""`rlhf run`: passes of observe, plan, write, act on one machine until the job ends or rests.

Called by `app`. What happens next is decided by `rlhf_operator.planning.plan`, the same as on a
cluster; here it is only carried out, with processes in place of Jobs and a file in place of the
API server.
"""

import os
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rlhf_api.names import ConditionType, ExitCode, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus
from rlhf_cli.gpus import stages_on_gpus
from rlhf_cli.launchers import Launchers, read_exit_code
from rlhf_cli.local_job import local_environment, localized
from rlhf_cli.stopping import StopRequest, stop_requests
from rlhf_cli.view import View
from rlhf_cli.workdir import Workdir
from rlhf_operator.planning.actions import Action, StartAttempt, StopAttempt
from rlhf_operator.planning.clocks import roused
from rlhf_operator.planning.conditions import is_true
from rlhf_operator.planning.configs import Placement
from rlhf_operator.planning.events import Event
from rlhf_operator.planning.guardrails import (
    awaits_resume,
    is_failed_by_guardrail,
    remedy,
    resumed,
)
from rlhf_operator.planning.plan import plan
from rlhf_operator.planning.rows import rows_used
from rlhf_operator.planning.statuses import is_finished, reopened, stages_of, with_idle_time

LAUNCHER = (sys.executable, "-m", "rlhf_trainer.launch")
"""What runs a stage, with the path of its stage.json behind it."""

POLL_SECONDS = 0.2
IDLE_SECONDS = 5.0
"""Longer than a runner that lives is ever silent."""

TOLD_CODES = frozenset(
    {
        ExitCode.GUARDRAIL,
        ExitCode.USAGE,
        ExitCode.DATA,
        ExitCode.INPUT,
        ExitCode.UNAVAILABLE,
        ExitCode.NUMERICS,
        ExitCode.IO,
        ExitCode.NO_PERMISSION,
        ExitCode.CONFIG,
    }
)
"""Exit codes of a failed stage that become the command's own; any other becomes 1."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        job: with its last status.
        exit_code: for the command.
    """

    job: RLHFJob
    exit_code: int


def goes_on(status: RLHFJobStatus, *, retry: bool) -> bool:
    """Whether a run opens a failed job again.

    It was told to, or a guardrail has failed the job: whoever starts a run again wants it then.
    """
    failed = is_true(status.conditions, ConditionType.FAILED)
    return failed and (retry or is_failed_by_guardrail(stages_of(status)))


@dataclass
class Runner:
    """Runs one job in its workdir, whose lock the caller holds.

    Attributes:
        job: as its file says, with the uid and status of the workdir.
        origin: the job's file, to whose folder file:// paths refer.
        workdir: the job's own folder.
        mounts: folders of claims.
        view: what people see.
        launcher: what runs a stage.
    """

    job: RLHFJob
    origin: Path
    workdir: Workdir
    mounts: dict[str, str]
    view: View
    launcher: tuple[str, ...] = LAUNCHER
    _launchers: Launchers = field(init=False)
    _noted: set[tuple[StageName, str]] = field(init=False, default_factory=set)
    _local: RLHFJob = field(init=False)
    _placement: Placement = field(init=False)

    def __post_init__(self) -> None:
        self._local = localized(self.job, self.origin.parent)
        self._placement = Placement(
            storage=str(self.workdir.folder),
            claims=self.mounts,
            in_turn=stages_on_gpus(self._local, os.environ),
        )
        grace = self.job.spec.template.termination_grace_period_seconds
        self._launchers = Launchers(self.workdir, self.launcher, grace)

    def run(self, *, retry: bool = False) -> Outcome:
        """Go on until the job has ended, was suspended, or is asked to stop by a signal.

        Args:
            retry: whether a failed job gets all its restarts again; one that a guardrail has
                failed does so in any case.
        """
        now = datetime.now(UTC)
        if goes_on(self.job.status, retry=retry):
            self._write(self.job.model_copy(update={"status": reopened(self.job.status, now)}))
        if is_finished(self.job.status):
            return Outcome(self.job, self._exit_code(None))
        self._resume()
        with stop_requests() as request, self.view:
            try:
                self._leave_out_idle_time(now)
                self._pass(request)
                while not self._rests():
                    time.sleep(POLL_SECONDS)
                    self._pass(request)
            finally:
                self._end_all(request)
        return Outcome(self.job, self._exit_code(request))

    def _resume(self) -> None:
        """Let go on what a guardrail has suspended: whoever starts a run again wants it."""
        status = self.job.status
        held = {name: each for name, each in stages_of(status).items() if awaits_resume(each)}
        if not held:
            return
        # What follows the last runner's end is left out of all clocks anyway.
        end = self.workdir.last_sign_of_life(self.job) or datetime.now(UTC)
        freed = {name.value: roused(resumed(each), end) for name, each in held.items()}
        stages = status.stages.model_copy(update=freed)
        changed = status.model_copy(update={"stages": stages})
        self._write(self.job.model_copy(update={"status": changed}))

    def _pass(self, request: StopRequest) -> None:
        if request.insisted:
            self._launchers.kill_all()
        self._launchers.kill_late()
        job = self._planned(request)
        result = plan(job, self._launchers.observe(job), datetime.now(UTC), self._placement)
        before = stages_of(self.job.status)
        if result.status != self.job.status:
            self._write(self.job.model_copy(update={"status": result.status}))
        for action in result.actions:
            self._act(action)
        for event in map(self._without_end, result.events):
            if not self._is_told_elsewhere(event):
                self.view.tell(event)
        for name, after in stages_of(self.job.status).items():
            # An Event tells where any were left out.
            for dataset, counts in rows_used(before.get(name, after), after):
                self.view.note(f"stage {name}: {dataset}: {counts.text}")
        for stage, note in self._launchers.take_notes():
            # Each attempt finds it again.
            if (stage, note) not in self._noted:
                self._noted.add((stage, note))
                self.view.note(f"stage {stage}: {note}")
        self.view.show(
            self.job,
            stopping=request.number is not None,
            evaluations=self._launchers.evaluations(),
        )

    def _without_end(self, event: Event) -> Event:
        """The event of a failure without the reason, and of a guardrail without the remedy: the
        command tells them once, as its end."""
        stages = stages_of(self.job.status)
        for name, stage in stages.items():
            told = f"stage {name}: {stage.message}"
            if event.message != f"{told}{remedy(stage, stages)}":
                continue
            if stage.state is StageState.FAILED:
                return replace(event, message=f"stage {name} has failed")
            return replace(event, message=told)
        return event

    def _is_told_elsewhere(self, event: Event) -> bool:
        """Whether the event tells of a stop or what follows it: the view says that it stops, the
        command's last line that it did, and an attempt that starts that it goes on."""
        if event.reason in (Reason.USER_REQUESTED, Reason.RESUMED):
            return True
        return any(
            stage.state is StageState.STOPPING
            and stage.reason is Reason.USER_REQUESTED
            and event.message == f"stage {name}: {stage.message}"
            for name, stage in stages_of(self.job.status).items()
        )

    def _planned(self, request: StopRequest) -> RLHFJob:
        """The job as `plan` is to see it: a signal suspends it until the next run."""
        suspend = self.job.spec.suspend or request.number is not None
        spec = self._local.spec.model_copy(update={"suspend": suspend})
        return self.job.model_copy(update={"spec": spec})

    def _act(self, action: Action) -> None:
        if isinstance(action, StopAttempt):
            self._launchers.stop(action.stage, action.attempt)
        if isinstance(action, StartAttempt):
            stage = self.job.spec.stages.present()[action.stage]
            self._launchers.start(action, local_environment(self.job, stage))

    def _write(self, job: RLHFJob) -> None:
        self.workdir.save(job)
        self.job = job

    def _rests(self) -> bool:
        """Whether the job has ended, or is suspended as it was asked to be."""
        status = self.job.status
        return is_finished(status) or is_true(status.conditions, ConditionType.SUSPENDED)

    def _end_all(self, request: StopRequest) -> None:
        """Leave no launcher behind; there is one only if the runner itself has failed."""
        self._launchers.stop_all()
        while self._launchers.any_alive():
            if request.insisted:
                self._launchers.kill_all()
            self._launchers.kill_late()
            time.sleep(POLL_SECONDS)

    def _leave_out_idle_time(self, now: datetime) -> None:
        """Stop the clocks for the time since the last runner was killed, if nothing ran on."""
        status = self.job.status
        suspended = is_true(status.conditions, ConditionType.SUSPENDED)
        observed = self._launchers.observe(self.job)
        if status.start_time is None or suspended or any(each.live for each in observed.attempts):
            return
        last = self.workdir.last_sign_of_life(self.job)
        if last is not None and (now - last).total_seconds() > IDLE_SECONDS:
            rested = with_idle_time(status, now - last)
            self._write(self.job.model_copy(update={"status": rested}))

    def _exit_code(self, request: StopRequest | None) -> int:
        conditions = self.job.status.conditions
        if is_true(conditions, ConditionType.SUCCEEDED):
            return ExitCode.DONE
        if is_true(conditions, ConditionType.FAILED):
            return self._failure_code()
        if any(awaits_resume(stage) for stage in stages_of(self.job.status).values()):
            return ExitCode.GUARDRAIL
        if request is not None and request.number is not None:
            return 128 + request.number
        return ExitCode.STOPPED_WITH_CHECKPOINT

    def _failure_code(self) -> int:
        """What the failed stage's last attempt said, if it says something; else a crash."""
        stages = {name: getattr(self.job.status.stages, name) for name in StageName}
        for name, stage in stages.items():
            if stage is None or stage.state is not StageState.FAILED:
                continue
            code = read_exit_code(self.workdir.attempt_folder(self.job, name, stage.attempt))
            if code in TOLD_CODES:
                return int(code)
        return ExitCode.CRASH
