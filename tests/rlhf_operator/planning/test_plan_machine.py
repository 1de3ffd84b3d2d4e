"""`plan` against a world in which anything happens: attempts appear late, run, fail, vanish, come
back, are seen twice and in any order, and the planner dies between any two of its actions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from happenings import HAPPENINGS, Happenings
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rlhf_api.names import (
    USER_ERROR_CODES,
    ConditionType,
    ExitCode,
    GuardrailAction,
    GuardrailRule,
    Reason,
    StageName,
    StageState,
)
from rlhf_api.v1alpha1 import HealthVerdict, RLHFJobStatus, RunPolicy, StageStatus, stage_inputs
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.guardrails import awaits_resume
from rlhf_operator.planning.observed import (
    Observed,
    ObservedVerdict,
    ProcessPhase,
)
from rlhf_operator.planning.removal import RemoveAttempt
from rlhf_operator.planning.stages import CLOSED
from rlhf_operator.planning.statuses import is_finished

BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
PPO = {
    "model": {"fromStage": "sft"},
    "rewardModel": {"fromStage": "reward"},
    "dataset": {"uri": "file:///rows.jsonl"},
}
SHAPES = (
    {"sft": BASE},
    {"sft": BASE, "reward": BASE, "ppo": PPO},
    {"sft": BASE, "reward": BASE | {"model": {"fromStage": "sft"}}, "ppo": PPO},
)
POLICY = {"maxRestarts": 2, "maxDisruptions": 2, "pendingDeadlineSeconds": 600}
CODES = [int(code) for code in ExitCode if code not in (ExitCode.DONE, *USER_ERROR_CODES)] + [134]
FINAL_CODES = [int(code) for code in USER_ERROR_CODES]
SELDOM = st.sampled_from([False, False, True])
ANY = st.integers(0, len(StageName) - 1)
"""One of the stages, those that have begun and are not over before all others."""


class World(Happenings):
    """A job, what really runs for it, and a planner."""

    def __init__(self, trial: Callable[..., Any]) -> None:
        super().__init__()
        self._make = trial
        self.trial: Any = None
        self.terminal: RLHFJobStatus | None = None
        self.attempts: dict[StageName, int] = dict.fromkeys(StageName, 0)
        self.held: set[StageName] = set()

    @initialize(
        shape=st.sampled_from(SHAPES),
        suspend=SELDOM,
        queue=st.sampled_from([{}, {"queueName": "q"}]),
    )
    def apply(self, shape: dict[str, Any], suspend: bool, queue: dict[str, str]) -> None:
        self.trial = self._make(stages=shape, runPolicy=POLICY, suspend=suspend, **queue)

    @rule(
        seconds=st.sampled_from([0, 1, 3, 11, 130, 700]),
        acted=st.sampled_from([0, 1, 2, 4, 4]),
        gentle=st.booleans(),
        error=st.sampled_from(["", "", "connection refused"]),
        shuffled=st.randoms(use_true_random=False),
    )
    def look(self, seconds: float, acted: int, gentle: bool, error: str, shuffled: Any) -> None:
        """A pass that dies after `acted` of its actions; what is stopped gently takes its time."""
        before = self.trial.job
        self._reorder(shuffled)
        self.trial.scrape_error = error
        self.trial.look(seconds)
        self._check(before.status)
        self._check_actions()
        self._confirm()
        for action in self.trial.last.actions[:acted]:
            self._act(action, gentle)

    @rule()
    def look_unwritten(self) -> None:
        """A pass that dies before its status is written."""
        job = self.trial.job
        self.trial.look()
        self.trial.job = job

    @rule(which=ANY, step=st.integers(0, 100), saved=st.booleans())
    def run(self, which: int, step: int, saved: bool) -> None:
        name = self._pick(which)
        if self._live(name):
            self.trial.run(name, step=step, last_checkpoint_step=step if saved else None)

    @rule(which=ANY, good=st.booleans())
    def finish(self, which: int, good: bool) -> None:
        name = self._pick(which)
        if self._live(name):
            changes = {} if good else {"config_digest": "sha256:" + "c" * 64}
            self.trial.finish(name, **changes)

    @rule(
        which=ANY,
        code=st.sampled_from(CODES * 4 + FINAL_CODES),
        disrupted=st.booleans(),
        partly=st.booleans(),
    )
    def end(self, which: int, code: int, disrupted: bool, partly: bool) -> None:
        name = self._pick(which)
        if not self._live(name):
            return
        self.trial.end(name, code, disrupted=disrupted)
        if partly:
            dead = self.trial.attempts[name, self._current(name)].processes
            rest = self.trial.process(name, index=1, phase=ProcessPhase.RUNNING, ready=True)
            self.trial.put(name, processes=(*dead, rest), failed=False)

    @rule(
        which=ANY,
        actions=st.lists(st.sampled_from(GuardrailAction), max_size=2),
        last=st.sampled_from([42, 80, 143]),
        partly=st.booleans(),
    )
    def trip(self, which: int, actions: list[GuardrailAction], last: int, partly: bool) -> None:
        """A guardrail ends the attempt, of which another process may end otherwise, or hang."""
        name = self._pick(which)
        if not self._live(name):
            return
        verdicts = [
            HealthVerdict(rule=rule, action=action, step=3, value=None, threshold=1.0)
            for rule, action in zip(GuardrailRule, actions, strict=False)
        ]
        self.trial.end(name, 42, said={"verdicts": tuple(verdicts)})
        dead = self.trial.attempts[name, self._current(name)].processes
        ended = {"phase": ProcessPhase.FAILED, "exit_code": last, "finished_at": self.trial.now}
        state = {"phase": ProcessPhase.RUNNING, "ready": True} if partly else ended
        rest = self.trial.process(name, index=1, **state)
        self.trial.put(name, processes=(*dead, rest), failed=not partly)

    @rule(which=ANY, broken=st.booleans())
    def judge(self, which: int, broken: bool) -> None:
        """Rank 0 tells of a rule."""
        name = self._pick(which)
        if self._live(name):
            told = {GuardrailRule.NEGATIVE_KL: ObservedVerdict(broken, 1.0, 0.0)}
            self.trial.run(name, step=3, verdicts=told)

    @rule(which=ANY, what=st.sampled_from(HAPPENINGS))
    def happen(self, which: int, what: str) -> None:
        """One of the methods below, by name: as rules of their own they would seldom meet."""
        getattr(self, f"_{what}")(self._pick(which))

    @rule(suspend=SELDOM, restarts=st.integers(0, POLICY["maxRestarts"]), keep=st.integers(0, 3))
    def edit(self, suspend: bool, restarts: int, keep: int) -> None:
        """A person changes what may be changed."""
        policy = {**POLICY, "maxRestarts": restarts, "keepFailedAttempts": keep}
        self.trial.spec(suspend=suspend, run_policy=RunPolicy.model_validate(policy))

    @invariant()
    @precondition(lambda self: self.trial is not None)
    def a_second_pass_changes_nothing(self) -> None:
        """Whatever a pass says, another look at the same moment has nothing to add."""
        job = self.trial.job
        first = self.trial.look()
        again = self.trial.look()
        self.trial.job = job
        assert again.status == first.status
        assert again.events == ()
        assert again.actions == first.actions

    @invariant()
    @precondition(lambda self: self.trial is not None)
    def nothing_is_due_before_the_next_look(self) -> None:
        """While nothing happens, every pass until the time that the plan names is idle."""
        job, seconds = self.trial.job, self.trial.seconds
        first = self.trial.look()
        wait = self.trial.wait()
        assert wait is None or wait > 0
        later = self.trial.look(1e6 if wait is None else max(0.0, wait - 1))
        self.trial.job, self.trial.seconds = job, seconds
        assert later.status == first.status
        assert later.events == ()
        assert later.actions == first.actions

    def teardown(self) -> None:
        """From wherever the job is, some sequence ends it."""
        if self.trial is None:
            return
        self.trial.refusals.clear()
        for turn in range(60):
            # What a guardrail has suspended goes on when a person has suspended it too.
            self.trial.spec(suspend=bool(self.held) and turn % 2 == 0)
            before = self.trial.job.status
            self.trial.look(301)
            self._check(before)
            self._check_actions()
            self._confirm()
            for action in self.trial.last.actions:
                self._act(action, gentle=False)
            for key, found in list(self.trial.attempts.items()):
                if found.stopping:
                    del self.trial.attempts[key]
            for name in StageName:
                # What is not wanted never ends by itself.
                wanted = self._state(name) in (StageState.STARTING, StageState.RUNNING)
                if wanted and self._live(name):
                    self.trial.finish(name)
            if is_finished(self.trial.job.status):
                return
        raise AssertionError(f"never ended: {self.trial.job.status}")

    def _confirm(self) -> None:
        """What the plan wants listed is listed."""
        for key in self.trial.last.unconfirmed:
            self.trial.attempts[key] = replace(self.trial.attempts[key], confirmed=True)

    def _reorder(self, shuffled: Any) -> None:
        items = list(self.trial.attempts.items())
        shuffled.shuffle(items)
        self.trial.attempts = dict(items)
        for key, found in items:
            processes = list(found.processes)
            shuffled.shuffle(processes)
            self.trial.attempts[key] = replace(found, processes=tuple(processes))

    def _act(self, action: Any, gentle: bool) -> None:
        if isinstance(action, StartAttempt):
            if self.trial.refusals.get((action.stage, action.attempt)) is not None:
                return
            self.trial.put(
                action.stage,
                processes=(self.trial.process(action.stage),),
                checkpoint_step=action.checkpoint_step,
            )
            return
        key = action.stage, action.attempt
        if isinstance(action, RemoveAttempt):
            self.trial.attempts.pop(key, None)
            return
        found = self.trial.attempts[key]
        if gentle:
            asked = tuple(replace(process, terminating=True) for process in found.processes)
            self.trial.attempts[key] = replace(found, processes=asked)
        else:
            # A cluster deletes the attempt: nothing of it is seen any more.
            del self.trial.attempts[key]

    def _check_actions(self) -> None:
        """At most one live attempt a stage, none before its inputs, and nobody is asked twice."""
        seen = Observed(tuple(self.trial.attempts.values()))
        failed = [n for n in StageName if self._state(n) is StageState.FAILED]
        for action in self.trial.last.actions:
            key = action.stage, action.attempt
            if isinstance(action, RemoveAttempt):
                self._check_removal(*key)
                continue
            if not isinstance(action, StartAttempt):
                assert self.trial.attempts[key].live
                assert not self.trial.attempts[key].stopping
                continue
            assert not failed
            assert not self.trial.job.spec.suspend
            assert action.stage not in self.held
            assert key not in self.trial.attempts
            assert seen.occupied(action.stage) == ()
            assert action.attempt == self._current(action.stage)
            inputs = stage_inputs(self.trial.job.spec.stages)[action.stage].values()
            assert all(self._state(each) is StageState.SUCCEEDED for each in inputs)
            assert set(action.config.artifacts) == set(inputs)

    def _check_removal(self, name: StageName, attempt: int) -> None:
        """Nothing goes that runs, that was good, or that is one of the newest."""
        stage, found = self.trial.stage(name), self.trial.attempts.get((name, attempt))
        assert attempt < stage.attempt or stage.state in (
            StageState.RESTARTING,
            StageState.SUSPENDED,
            StageState.FAILED,
        )
        if found is None:
            assert (name, attempt + 1) in self._starts()
            return
        assert not found.live
        newer = [
            number
            for (stage_name, number), each in self.trial.attempts.items()
            if stage_name is name and number > attempt and not each.live
        ]
        assert len(newer) >= self.trial.job.spec.run_policy.keep_failed_attempts

    def _starts(self) -> list[tuple[StageName, int]]:
        actions = self.trial.last.actions
        return [(each.stage, each.attempt) for each in actions if isinstance(each, StartAttempt)]

    def _check(self, before: RLHFJobStatus) -> None:
        status = self.trial.job.status
        if self.terminal is not None:
            if self._is_taken_up(before):
                assert status.phase == "Suspended"
                self.terminal = None
            else:
                assert _settled(status) == _settled(self.terminal)
        if is_finished(status):
            self.terminal = status
            assert status.completion_time is not None
            if not is_finished(before):
                assert not any(self._live(name) for name in StageName)
        self._check_held(before)
        for name in StageName:
            old, new = getattr(before.stages, name), getattr(status.stages, name)
            if new is None:
                continue
            assert new.attempt >= self.attempts[name]
            self.attempts[name] = new.attempt
            grown = new.attempt - (old.attempt if old else 0)
            assert grown in (0, 1)
            held = old is not None and old.state is StageState.RUNNING and self._was_held(name)
            if new.state is StageState.STARTING:
                assert grown or (old is not None and old.state is StageState.STARTING) or held
            if grown:
                assert Observed(tuple(self.trial.attempts.values())).occupied(name) == ()
            assert new.restarts <= POLICY["maxRestarts"]
            self._check_clock(new, old.idle_seconds if old is not None else 0)
            over = old is not None and old.state in (StageState.SUCCEEDED, StageState.FAILED)
            if over and not (old.state is StageState.FAILED and self._is_taken_up(before)):
                assert new == old
        self._check_clock(status, before.idle_seconds)
        assert RLHFJobStatus.model_validate(status.to_resolved_document()) == status

    def _is_taken_up(self, before: RLHFJobStatus) -> bool:
        """Whether a person has suspended it after a guardrail alone had failed stages of it."""
        stages = [getattr(before.stages, name) for name in StageName]
        ends = {each.reason for each in stages if each and each.state is StageState.FAILED}
        return self.trial.job.spec.suspend and ends == {Reason.GUARDRAIL}

    def _check_held(self, before: RLHFJobStatus) -> None:
        """What a guardrail stopped stays so until spec.suspend was true, and costs no restart."""
        for name in StageName:
            old, new = getattr(before.stages, name), self.trial.stage(name)
            if new is None or not awaits_resume(new):
                self.held.discard(name)
                released = old is not None and awaits_resume(old)
                closed = new is not None and new.state in CLOSED
                assert not released or closed or self.trial.job.spec.suspend
            elif name not in self.held:
                self.held.add(name)
                assert new.restarts == old.restarts

    def _check_clock(self, clock: Any, idle_before: int) -> None:
        """Idle time only grows, lies between the start and now, and lasts only while one waits."""
        assert clock.idle_seconds >= idle_before
        if clock.start_time is None:
            assert (clock.idle_seconds, clock.idle_since) == (0, None)
            return
        begun = (self.trial.now - clock.start_time).total_seconds()
        since = clock.idle_since or self.trial.now
        assert clock.start_time <= since <= self.trial.now
        assert clock.idle_seconds + (self.trial.now - since).total_seconds() <= begun
        if isinstance(clock, StageStatus) and clock.idle_since is not None:
            assert clock.state is StageState.STARTING or awaits_resume(clock)


def _settled(status: RLHFJobStatus) -> RLHFJobStatus:
    """The status without what is said of children, of which a finished job may have some left, and
    without the generations that were looked at."""
    kept = [each for each in status.conditions if each.type is not ConditionType.CHILDREN_READY]
    conditions = tuple(each.model_copy(update={"observed_generation": None}) for each in kept)
    return status.model_copy(update={"conditions": conditions, "observed_generation": None})


def test_plan_in_any_world(trial: Callable[..., Any]) -> None:
    run_state_machine_as_test(
        lambda: World(trial),
        settings=settings(
            max_examples=400,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
