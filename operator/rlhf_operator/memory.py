"""What the operator keeps of a job between passes, by uid. It saves requests and decides nothing.

Called by `reconcile`. A new leader starts with none of it and comes to the same verdicts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Final, Literal, Self

from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import RLHFJobStatus
from rlhf_operator.planning.actions import Action
from rlhf_operator.planning.observed import ObservedProcess, Refusal
from rlhf_operator.planning.statuses import is_finished, stages_of

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 60.0
REMEMBERED_TRIES = 16
"""Of which the words are compared: of three quotas that take turns none is unsaid in so many."""
LACKING_SECONDS = 5.0
"""How long the Job controller may take to make pods before anyone asks why it has not."""

AttemptId = tuple[StageName, int]
Reading = Literal["read", "service", "confirm"]
ActionId = tuple[type[Action] | Reading, StageName, int] | Literal["expiry"]
"""What is done, and to which attempt: a start that is refused delays no stop."""
READ: Final = "read"
"""What is done to an attempt's Job that no watch shows: it is asked for."""
SERVICE: Final = "service"
"""What is done to the Service of a gang whose pods look for each other: it is asked for."""
CONFIRM: Final = "confirm"
"""What is done to an attempt before a verdict: its pods are listed, or what Events tell of them."""
EXPIRY: Final = "expiry"
"""What is done to the job itself: to delete it when `runPolicy.ttlSecondsAfterFinished` is over."""


@dataclass
class Refused:
    """An action that was refused.

    Attributes:
        refusal: why, as it is told.
        said: what the last tries said, the newest at the end.
        not_before: when it may be tried again, whatever wakes the job; on the monotonic clock.
        failures: how often it was refused in a row.
    """

    refusal: Refusal
    said: tuple[str, ...]
    not_before: float
    failures: int = 1


@dataclass
class Lookup:
    """The Events of a Job that lacks pods, or of a pod that waits on its node.

    Attributes:
        next: when they are asked for again; on the monotonic clock.
        pause: seconds between the last two times.
        found: what they tell; None before they were asked for.
        said: what they told the last times, the newest at the end.
    """

    next: float
    pause: float = LACKING_SECONDS
    found: ObservedProcess | None = None
    said: tuple[str, ...] = ()

    def hear(self, found: ObservedProcess) -> None:
        """Note what the Events tell now, in the words of the last time if those stay.

        Of another pod nothing was told in words that could stay: they name the one before.
        """
        known = self.found
        if known is not None and (known.name, known.reason) == (found.name, found.reason):
            self.said = _with(self.said, found.message)
            found = replace(found, message=_words(known.message, self.said))
        else:
            self.said = (found.message,)
        self.found = found


@dataclass(frozen=True)
class Pruned:
    """A status of which the API server has not kept all: its CRD is older than this operator.

    Attributes:
        sent: the status as it was written.
        kept: the document that was answered.
    """

    sent: RLHFJobStatus
    kept: Mapping[str, Any]


@dataclass
class Memory:
    """Of one job.

    Attributes:
        pruned: the status that was written last, if it was not kept as it was.
        untold_since: the status up to which Events were told, where a write after it had no answer;
            None where that is the one in the store.
        refused: the actions, the reads of Jobs and Services and the LISTs before verdicts, refused
            and not done since.
        lookups: the attempts that lack pods.
        waits: the attempts with a pod on a node that has not begun to start it.
        pod_looks: of Jobs with pods that no watch shows, when those are listed again.
        remains: what the Events of attempts without pods told, each asked for once.
        unremoved: attempts that are to be removed, until that is done; at first those of which an
            operator before may have left something.
    """

    pruned: Pruned | None = None
    untold_since: RLHFJobStatus | None = None
    refused: dict[ActionId, Refused] = field(default_factory=dict)
    lookups: dict[AttemptId, Lookup] = field(default_factory=dict)
    waits: dict[AttemptId, Lookup] = field(default_factory=dict)
    pod_looks: dict[str, float] = field(default_factory=dict)
    remains: dict[AttemptId, ObservedProcess | None] = field(default_factory=dict)
    unremoved: set[AttemptId] = field(default_factory=set)

    @classmethod
    def begin(cls, status: RLHFJobStatus) -> Self:
        """What is known of a job that is seen for the first time, by its status."""
        if is_finished(status):
            return cls()
        stages = stages_of(status).items()
        return cls(
            unremoved={(name, each.attempt - 1) for name, each in stages if each.attempt > 1}
        )

    def written(
        self, sent: RLHFJobStatus, document: Mapping[str, Any], kept: Mapping[str, Any]
    ) -> None:
        """Note what became of a status that was sent as this document."""
        self.pruned = None if kept == document else Pruned(sent, kept)

    def status_of(self, raw: Mapping[str, Any], read: RLHFJobStatus) -> RLHFJobStatus:
        """The status of a job as it was sent, while nobody else has written it.

        Otherwise what no answer keeps is new to each pass, which writes it, and tells it, again.
        """
        pruned = self.pruned
        return read if pruned is None or pruned.kept != (raw.get("status") or {}) else pruned.sent

    def refusals(self) -> Mapping[AttemptId, Refusal]:
        """Why actions are not done yet, by the attempt that they are about."""
        of_attempts = {id_: found for id_, found in self.refused.items() if id_ != EXPIRY}
        return {(stage, n): refused.refusal for (_, stage, n), refused in of_attempts.items()}

    def expiry_refusal(self) -> Refusal | None:
        """Why the job itself is not deleted yet; None if that was not refused."""
        refused = self.refused.get(EXPIRY)
        return None if refused is None else refused.refusal

    def may_try(self, ident: ActionId, now: float) -> bool:
        """Whether an action may be tried at `now`."""
        refused = self.refused.get(ident)
        return refused is None or now >= refused.not_before

    def refuse(self, ident: ActionId, refusal: Refusal, now: float) -> bool:
        """Note a refusal; True if it says something new.

        What is refused for the same reason is told in other words only when two tries in a row say
        them: a text that is never the same twice would be written after every try. Where texts take
        turns, one of several quotas for example, the one that was told stays while it is said.
        """
        known = self.refused.get(ident)
        failures = 1 if known is None else known.failures + 1
        pause = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
        told = refusal
        said: tuple[str, ...] = (refusal.message,)
        if known is not None and _kind(known.refusal) == _kind(refusal):
            said = _with(known.said, refusal.message)
            told = replace(refusal, message=_words(known.refusal.message, said))
        not_before = now + max(refusal.at_least, pause)
        self.refused[ident] = Refused(told, said, not_before, failures)
        if known is None:
            return True
        old = known.refusal
        return (_kind(old), old.message) != (_kind(told), told.message)

    def forget_all_but(self, wanted: Iterable[ActionId]) -> None:
        """Forget the refusals of actions that are not to be done any more."""
        reads = {id_ for id_ in self.refused if id_[0] in (READ, SERVICE, CONFIRM)}
        for ident in self.refused.keys() - {*wanted, *reads, EXPIRY}:
            del self.refused[ident]

    def unread(self) -> frozenset[AttemptId]:
        """The attempts of which it is not known whether their Job is there."""
        return frozenset(id_[1:] for id_ in self.refused if id_ != EXPIRY and id_[0] == READ)

    def forget_reads_but(self, wanted: Iterable[AttemptId], what: Reading = READ) -> bool:
        """Forget the refused reads of what need not be asked for any more; True if any were."""
        kept = {(what, *each) for each in wanted}
        forgotten = [id_ for id_ in self.refused if id_[0] == what and id_ not in kept]
        for ident in forgotten:
            del self.refused[ident]
        return bool(forgotten)

    def forget_attempts_but(self, seen: Iterable[AttemptId]) -> None:
        """Forget what Events told of attempts that are gone."""
        kept = set(seen)
        for told in (self.lookups, self.waits, self.remains):
            for ident in told.keys() - kept:
                del told[ident]

    def next_try(self) -> float | None:
        """When the first refused action may be tried again; None if there is none."""
        return min((refused.not_before for refused in self.refused.values()), default=None)


def ident_of(action: Action) -> ActionId:
    """What an action is known by from pass to pass."""
    return type(action), action.stage, action.attempt


def _kind(refusal: Refusal) -> tuple[Reason, bool, str]:
    return refusal.reason, refusal.final, refusal.child


def _with(said: tuple[str, ...], new: str) -> tuple[str, ...]:
    return (*said, new)[-REMEMBERED_TRIES:]


def _words(told: str, said: tuple[str, ...]) -> str:
    """The words for what was told before: the newest ones as soon as they are repeated.

    Texts that come back after others take turns: of them the one that was told stays, unless none
    of the tries that are remembered has said it.

    Args:
        told: the words until now.
        said: those of the last tries, the newest at the end.
    """
    if said[-2:] != (said[-1],) * 2:
        return told
    turns = sum(1 for _ in groupby(said))
    return told if turns > len(set(said)) and told in said else said[-1]
