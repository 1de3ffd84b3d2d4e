"""What is seen of a job's stages: the input of `plan` beside the job itself.

Made by whoever runs the stages: the operator from pods and their termination messages, `rlhf run`
from processes and files. Nothing here is decided, and nothing is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from rlhf_api.names import GuardrailRule, Reason, StageName
from rlhf_api.v1alpha1 import RowCounts, StageResult


class ProcessPhase(StrEnum):
    """Where a process stands; the words are those of a pod's phase."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class ObservedVerdict:
    """What rank 0 tells of one rule.

    Attributes:
        broken: whether the rule is broken.
        value: its quantity; None where that is not finite.
        threshold: what the quantity is compared with.
        step: the update at which that was so; None stands for the step that is told beside it.
    """

    broken: bool
    value: float | None = None
    threshold: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class ObservedProgress:
    """How far an attempt is, as rank 0 tells it.

    Attributes:
        step: steps done, those of earlier attempts included.
        total_steps: steps in all; 0 while not known.
        eta_seconds: estimated seconds to the end.
        metrics: the last finite metrics by name.
        last_checkpoint_step: step of the newest complete checkpoint that this attempt wrote.
        verdicts: the rules that are judged; empty before any is.
        rows: what became of each dataset's rows, by its field; empty before they are read.
    """

    step: int
    total_steps: int
    eta_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    last_checkpoint_step: int | None = None
    verdicts: Mapping[GuardrailRule, ObservedVerdict] = field(default_factory=dict)
    rows: Mapping[str, RowCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class ObservedProcess:
    """One launcher: a pod on a cluster, a process in local mode.

    Attributes:
        name: what people look for: the pod's name, or the log file.
        index: its node rank.
        phase: where it stands.
        ready: whether it runs and can be reached.
        exit_code: as a shell gives it, 128 + n for signal n; None if not known.
        finished_at: when it ended, or was found lost.
        result: what it said at its end; None if it left nothing.
        reason: why it ended in the platform's view, if that says more than the exit code.
        message: the platform's sentence about that, or what it left in place of a result.
        patient: whether another try soon cannot help, since what trains has not run, or is of
            another release.
        disrupted: whether the platform ended it, by preemption, a drain or a lost node.
        lost: whether nobody can say that it ended, since its node does not answer; not waited for.
        terminating: whether it was asked to stop.
        beside: what runs on beside it though it has ended, and keeps its place.
    """

    name: str
    index: int = 0
    phase: ProcessPhase = ProcessPhase.PENDING
    ready: bool = False
    exit_code: int | None = None
    finished_at: datetime | None = None
    result: StageResult | None = None
    reason: Reason | None = None
    message: str = ""
    patient: bool = False
    disrupted: bool = False
    lost: bool = False
    terminating: bool = False
    beside: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.lost or self.phase in (ProcessPhase.SUCCEEDED, ProcessPhase.FAILED)

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.ended and self.phase is not ProcessPhase.SUCCEEDED


@dataclass(frozen=True)
class ObservedAttempt:
    """One attempt of one stage of which anything is left.

    Attributes:
        stage: the stage.
        attempt: number of the attempt.
        processes: its launchers, in any order.
        complete: whether all of them ended well; says so even when they are gone, and although
            others run on beside them.
        failed: whether it was given up; says so even when they are gone.
        killed_at: when the rest began to be killed; what ends after that is no evidence.
        checkpoint_step: step of the newest checkpoint when the attempt was started.
        guardrails: digest of the guardrails that it was started with; None if not known.
        progress: how far it is; None before it says so.
        scrape_error: why it could not be asked how far it is; empty if nothing is wrong.
        held_since: since when a queue holds it back; None while it does not.
        released_at: when the queue let it run; None if it was never held back, or is now.
        confirmed: whether its processes are known to be at least as new as `complete` and `failed`;
            until then a process that is not there may just not be seen yet.
        over: whether it was given up and none of its processes runs any more, whatever they show.
        deleting: whether it is being deleted, and is gone as soon as its processes are.
        leaves_logs: whether its logs stay when it has to be ended, as files do and pods do not.
        ended_by: why the platform says that it was given up, with a remedy, where that is not that
            one of its processes failed; empty if it says no such thing.
        disowned: whether it lacks the owner that says whose it is: it counts, nothing is started
            beside it, and it is left alone.
        unread: whether it is not known if it is there, since its Job could not be asked for.
    """

    stage: StageName
    attempt: int
    processes: tuple[ObservedProcess, ...] = ()
    complete: bool = False
    failed: bool = False
    killed_at: datetime | None = None
    checkpoint_step: int | None = None
    guardrails: str | None = None
    progress: ObservedProgress | None = None
    scrape_error: str = ""
    held_since: datetime | None = None
    released_at: datetime | None = None
    confirmed: bool = True
    over: bool = False
    deleting: bool = False
    leaves_logs: bool = False
    ended_by: str = ""
    disowned: bool = False
    unread: bool = False

    @property
    def live(self) -> bool:
        """Whether anything of it may still run."""
        if self.processes:
            return any(not process.ended for process in self.processes)
        return not (self.complete or self.failed)

    @property
    def beside(self) -> tuple[str, ...]:
        """What runs on beside processes that have ended, each name once."""
        return tuple(dict.fromkeys(name for process in self.processes for name in process.beside))

    @property
    def occupied(self) -> bool:
        """Whether it still has a place to give up: anything of it may run, or runs on beside it."""
        return self.live or bool(self.beside)

    @property
    def stopping(self) -> bool:
        """Whether everything that still runs was asked to stop."""
        running = [each for each in self.processes if each.beside or not each.ended]
        return bool(running) and all(process.terminating for process in running)

    @property
    def ready(self) -> bool:
        """Whether the whole gang runs."""
        return bool(self.processes) and all(process.ready for process in self.processes)


@dataclass(frozen=True)
class Refusal:
    """Why a child could not be made or deleted.

    Attributes:
        reason: of the condition ChildrenReady.
        message: object, what the API server said, remedy.
        final: whether trying again cannot help.
        at_least: seconds to wait before the next try.
        child: kind and name of what was refused; empty if that is not one object.
    """

    reason: Reason
    message: str
    final: bool = False
    at_least: float = 0.0
    child: str = ""


@dataclass(frozen=True)
class Oddity:
    """Something that stands among a job's children and is none, or a child that was changed.

    Attributes:
        reason: of the condition ChildrenIntact.
        message: object, what is odd about it, remedy.
    """

    reason: Reason
    message: str


@dataclass(frozen=True)
class Observed:
    """Everything that is seen of a job at one moment, each attempt once.

    Attributes:
        attempts: what is left of the attempts.
        refusals: for a stage and the number of its attempt, what the last try to make or delete its
            children was refused with.
        oddities: what is found among its children that should be otherwise, and is left alone.
        look_at: when something that is seen will mean something else by the mere passing of time.
        unremoved: attempts of which something may be left that is to be removed, though no Job.
        expiry: what the last try to delete the job itself, whose time is over, was refused with.
    """

    attempts: tuple[ObservedAttempt, ...] = ()
    refusals: Mapping[tuple[StageName, int], Refusal] = field(default_factory=dict)
    oddities: tuple[Oddity, ...] = ()
    look_at: datetime | None = None
    unremoved: frozenset[tuple[StageName, int]] = frozenset()
    expiry: Refusal | None = None

    def find(self, stage: StageName, attempt: int) -> ObservedAttempt | None:
        """That attempt; None if nothing of it is there."""
        for found in self.attempts:
            if (found.stage, found.attempt) == (stage, attempt):
                return found
        return None

    def occupied(self, stage: StageName) -> tuple[ObservedAttempt, ...]:
        """The attempts of `stage` of which something may still run, or runs on beside them."""
        return tuple(found for found in self.attempts if found.stage is stage and found.occupied)
