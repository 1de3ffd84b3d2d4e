"""Guardrails as planning sees them: which rules are broken, and a stage that one of them stopped.

Called by `failures`, `stages`, `clocks`, `summaries` and `plan`. Pure. Rules are judged by the
trainer; here is only kept what it tells. A stage that a guardrail suspended is known by its state
and reason, so that whoever plans next knows it too.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence

from rlhf_api.names import (
    ConditionType,
    GuardrailAction,
    GuardrailRule,
    Reason,
    StageName,
    StageState,
)
from rlhf_api.v1alpha1 import Guardrail, HealthVerdict, StageResult, StageStatus
from rlhf_operator.planning.conditions import Finding
from rlhf_operator.planning.observed import ObservedAttempt, ObservedProcess, ObservedVerdict

HELP = "docs/guardrails.md says what to do"
RESUME = (
    "to go on from the last checkpoint set spec.suspend to true and, once condition Suspended says "
    "UserRequested, back to false; with rlhf run give the same command again"
)
_NOT_FINITE = "not finite"
_FEW_DIGITS = 4
_ALL_DIGITS = 18
_RANKS = {rule.value: rank for rank, rule in enumerate(GuardrailRule)}


def awaits_resume(stage: StageStatus) -> bool:
    """Whether a guardrail has suspended the stage, and nobody has said since that it may go on."""
    return stage.state is StageState.SUSPENDED and stage.reason is Reason.GUARDRAIL


def resumed(stage: StageStatus) -> StageStatus:
    """The stage as one that a person has suspended, which goes on when nothing is suspended."""
    if not awaits_resume(stage):
        return stage
    wish = {"reason": Reason.USER_REQUESTED, "message": "goes on when it is resumed"}
    return stage.model_copy(update=wish)


def is_failed_by_guardrail(stages: Mapping[StageName, StageStatus]) -> bool:
    """Whether a guardrail, and nothing else, has failed the job: it can be resumed."""
    failed = [stage for stage in stages.values() if stage.state is StageState.FAILED]
    # Numbers that are not finite have a reason of their own: the same would come again.
    return bool(failed) and all(stage.reason is Reason.GUARDRAIL for stage in failed)


def remedy(stage: StageStatus, stages: Mapping[StageName, StageStatus]) -> str:
    """A clause on how one of a job's `stages` goes on that a guardrail has suspended or failed;
    else empty."""
    failed = stage.state is StageState.FAILED and is_failed_by_guardrail(stages)
    return f"; {RESUME}" if failed or awaits_resume(stage) else ""


def ending_verdict(process: ObservedProcess) -> HealthVerdict | None:
    """The verdict whose action ended the process; None if it told none that can be read."""
    verdicts = process.result.verdicts if process.result is not None else ()
    return verdicts[0] if verdicts else None


def guardrail_message(verdict: HealthVerdict | None, said: str) -> str:
    """Which rule ended an attempt and by which numbers, where the process does not say itself."""
    if verdict is None or verdict.rule in said:
        return said
    found = evidence(verdict.value, verdict.threshold, verdict.step)
    return f"guardrail {verdict.rule} ({verdict.action}): {found}" + (f"; {said}" if said else "")


def is_final(verdict: HealthVerdict | None) -> bool:
    """Whether the job is to fail; what ended for a reason that cannot be read can be resumed."""
    return verdict is not None and verdict.action is GuardrailAction.FAIL


def evidence(value: float | None, threshold: float | None, step: int) -> str:
    """A verdict's numbers; None stands for one that is not finite.

    With as many digits as it takes to tell the two apart: `read_evidence` gives them back.
    """
    digits = _digits(value, threshold)
    found, limit = (_NOT_FINITE if n is None else f"{n:.{digits}g}" for n in (value, threshold))
    return f"{found} against a threshold of {limit} at update {step}"


def read_evidence(text: str) -> ObservedVerdict:
    """The verdict that `evidence` wrote; without numbers if another release wrote it otherwise."""
    found = re.fullmatch(r"(.+) against a threshold of (.+) at update (\d+)", text)
    if found is None:
        return ObservedVerdict(broken=True)
    value, threshold = (_number(each) for each in found.group(1, 2))
    return ObservedVerdict(broken=True, value=value, threshold=threshold, step=int(found[3]))


def broken_rules(stage: StageStatus, attempt: ObservedAttempt) -> dict[str, str] | None:
    """What status is to say of the rules; None as long as nothing was told of any.

    The numbers stay as they were when a rule turned, or status would change with every look.
    """
    found, told = stage.verdicts, attempt.progress
    if told is not None and told.verdicts:
        known = stage.verdicts or {}
        found = {
            rule.value: known.get(rule)
            or evidence(each.value, each.threshold, told.step if each.step is None else each.step)
            for rule, each in told.verdicts.items()
            if each.broken
        }
    ends = _results_with_rules(attempt)
    return _at_end(ends[0]) if ends else found


def tells_rules(attempt: ObservedAttempt) -> bool:
    """Whether the attempt has ended and said then that a rule is broken."""
    return bool(_results_with_rules(attempt))


def rules_at_success(
    stage: StageStatus, name: StageName, result: StageResult
) -> dict[str, str] | None:
    """The same for an attempt that ended well: a result without verdicts says that all is well."""
    judged = stage.verdicts is not None or name is StageName.PPO or result.verdicts
    return _at_end(result) if judged else None


def health(stages: Mapping[StageName, StageStatus]) -> Finding | None:
    """Condition Healthy; None before any stage has told of its rules."""
    told = {name: each.verdicts for name, each in stages.items() if each.verdicts is not None}
    if not told:
        return None
    broken = [(rule, name) for name, rules in told.items() for rule in rules]
    if not broken:
        message = "no rule is broken"
        return Finding(ConditionType.HEALTHY, "True", Reason.WITHIN_LIMITS, message)
    # A newer operator may know further rules.
    broken.sort(key=lambda each: (_RANKS.get(each[0], len(_RANKS)), each))
    clauses = [f"stage {name}: {rule}: {told[name][rule]}" for rule, name in broken]
    return Finding(ConditionType.HEALTHY, "False", broken[0][0], "; ".join([*clauses, HELP]))


def guardrails_digest(guardrails: Sequence[Guardrail]) -> str:
    """What tells apart two sets of guardrails, in whatever order they stand."""
    documents = {each.rule.value: each.to_document() for each in guardrails}
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:16]


def _results_with_rules(attempt: ObservedAttempt) -> list[StageResult]:
    ordered = sorted(attempt.processes, key=lambda process: process.index)
    return [each.result for each in ordered if each.result is not None and each.result.verdicts]


def _digits(value: float | None, threshold: float | None) -> int:
    """As few as tell the two apart; people need four."""
    if value is None or threshold is None:
        return _FEW_DIGITS
    wanted = range(_FEW_DIGITS, _ALL_DIGITS)
    return next((n for n in wanted if f"{value:.{n}g}" != f"{threshold:.{n}g}"), _FEW_DIGITS)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _at_end(result: StageResult) -> dict[str, str]:
    return {
        each.rule.value: evidence(each.value, each.threshold, each.step) for each in result.verdicts
    }
