"""What may happen to the attempts of a job while a planner looks at them: the world of a state
machine, without its rules."""

from dataclasses import replace
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from rlhf_api.names import Reason, StageName, StageState
from rlhf_operator.planning.observed import ObservedAttempt, ProcessPhase, Refusal
from rlhf_operator.planning.stages import CLOSED

HAPPENINGS = (
    "appear",
    "hold_back",
    "release",
    "duplicate",
    "forget",
    "lag",
    "refuse",
    "put_off",
    "upgrade",
    "vanish",
    "lose",
    "return_from_the_dead",
)
NO_ROOM = Refusal(Reason.QUOTA_EXCEEDED, "no room")


class Happenings(RuleBasedStateMachine):
    """Each of `HAPPENINGS` as a method, for a stage by its name.

    Attributes:
        trial: the job and its attempts.
    """

    trial: Any

    def _appear(self, name: StageName) -> None:
        """What a planner that died had asked for comes late, whatever was decided since."""
        if (number := self._current(name)) and (name, number) not in self.trial.attempts:
            self.trial.put(name, processes=(self.trial.process(name),))

    def _hold_back(self, name: StageName) -> None:
        """A queue does not let the attempt run, or takes it away again."""
        if self._live(name):
            held = self.trial.process(name, reason=Reason.QUEUED, message="waits in queue q")
            since = {"held_since": self.trial.now, "released_at": None}
            self.trial.put(name, processes=(held,), **since)

    def _release(self, name: StageName) -> None:
        """A queue lets the attempt run, whether or not anybody had seen that it was held back."""
        if self._live(name):
            free = {"held_since": None, "released_at": self.trial.now}
            self.trial.put(name, processes=(self.trial.process(name),), **free)

    def _duplicate(self, name: StageName) -> None:
        """A pod and the one that takes its place are seen at once."""
        found = self.trial.attempts.get((name, self._current(name)))
        if found is not None and found.processes and len(found.processes) < 4:
            twin = replace(found.processes[0], name="twin", terminating=True)
            self.trial.put(name, processes=(*found.processes, twin))

    def _forget(self, name: StageName) -> None:
        """Pods are deleted, and only the platform's own word on the attempt is left."""
        if (name, self._current(name)) in self.trial.attempts:
            self.trial.put(name, processes=())

    def _lag(self, name: StageName) -> None:
        """The platform's word on the attempt is seen before what its processes have left."""
        found = self.trial.attempts.get((name, self._current(name)))
        if found is not None and found.processes and not found.live:
            self.trial.put(name, processes=(), confirmed=False)

    def _refuse(self, name: StageName) -> None:
        """The platform refuses what the planner asked for, for good."""
        self._put_off(name, Refusal(Reason.INVALID_SPEC, "refused", final=True))

    def _put_off(self, name: StageName, refusal: Refusal = NO_ROOM) -> None:
        """The platform refuses what the planner asked for, for now."""
        key = name, self._current(name)
        if self._state(name) is StageState.STARTING and key not in self.trial.attempts:
            self.trial.refusals[key] = refusal

    def _upgrade(self, name: StageName) -> None:
        """What was announced had another configuration then."""
        status = self.trial.job.status
        if self._state(name) is StageState.STARTING:
            stage = self.trial.stage(name).model_copy(
                update={"config_digest": "sha256:" + "d" * 64}
            )
            stages = status.stages.model_copy(update={name.value: stage})
            status = status.model_copy(update={"stages": stages})
            self.trial.job = self.trial.job.model_copy(update={"status": status})

    def _vanish(self, name: StageName) -> None:
        """Somebody deletes the attempt, and everything of it."""
        self.trial.attempts.pop((name, self._current(name)), None)

    def _lose(self, name: StageName) -> None:
        """The node no longer answers."""
        if self._live(name):
            lost = self.trial.process(name, phase=ProcessPhase.RUNNING, lost=True, disrupted=True)
            self.trial.put(name, processes=(lost,))

    def _return_from_the_dead(self, name: StageName) -> None:
        """A node that was taken for lost answers again, and an earlier attempt runs on it."""
        old = self._current(name) - 1
        if old > 0:
            runs = self.trial.process(name, phase=ProcessPhase.RUNNING, ready=True)
            self.trial.attempts[name, old] = ObservedAttempt(name, old, (runs,))

    def _pick(self, which: int) -> StageName:
        def is_over(name: StageName) -> bool:
            return not self._current(name) or self._state(name) in CLOSED

        return sorted(StageName, key=is_over)[which]

    def _current(self, name: StageName) -> int:
        stage = self.trial.stage(name)
        return stage.attempt if stage is not None else 0

    def _live(self, name: StageName) -> bool:
        found = self.trial.attempts.get((name, self._current(name)))
        return found is not None and found.live

    def _state(self, name: StageName) -> StageState | None:
        stage = self.trial.stage(name)
        return stage.state if stage is not None else None

    def _was_held(self, name: StageName) -> bool:
        found = self.trial.attempts.get((name, self._current(name)))
        return found is not None and (found.held_since or found.released_at) is not None
