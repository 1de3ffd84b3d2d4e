"""Whatever numbers a process tells, the status that follows is one that the API server takes."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.metrics import STATUS_METRICS
from rlhf_api.v1alpha1 import RLHFJobStatus, StageResult
from rlhf_operator.planning.observed import ProcessPhase

MakeTrial = Callable[..., Any]

HOSTILE = [3e9, -1, 1e300, -1e300, float("nan"), float("inf"), 10**400, 2**63, True, "7", None]


def check(status: RLHFJobStatus) -> None:
    """Models that were copied have checked nothing: read the whole as the API server would."""
    text = json.dumps(status.to_resolved_document(), allow_nan=False)
    assert RLHFJobStatus.parse_json(text) == status


def test_a_metric_that_went_astray_fits_into_the_summary(trial: MakeTrial) -> None:
    t = trial(stages=STAGES).running("ppo")
    t.run("ppo", step=2_147_483_647, metrics=dict.fromkeys(STATUS_METRICS, -1e300))
    t.look()
    check(t.job.status)
    summary = t.job.status.summary
    assert (summary.reward, summary.kl, summary.critic_loss) == ("-1e+300", "-1e+300", "-1e+300")
    t.run("ppo", metrics={"reward": 123456.789, "kl": -0.5})
    t.look()
    assert (t.job.status.summary.reward, t.job.status.summary.kl) == ("123456.79", "-0.50")


STAGES = {
    "ppo": {
        "model": {"uri": "hf://org/base"},
        "rewardModel": {"uri": "hf://org/reward"},
        "dataset": {"uri": "file:///data/rows.jsonl"},
    }
}


@pytest.mark.parametrize("number", HOSTILE, ids=lambda number: repr(number)[:8])
@pytest.mark.parametrize("code", [0, 1, 42])
def test_numbers_of_a_result_do_not_keep_a_job_from_being_suspended(
    trial: MakeTrial, number: object, code: int
) -> None:
    t = trial(stages=STAGES).running("ppo")
    document = json.loads(t.result("ppo", code).to_message()) | {
        "step": number,
        "totalSteps": number,
        "lastCheckpointStep": number,
        "metrics": {metric.value: number for metric in STATUS_METRICS},
        "rows": {"dataset": {"kept": number, "overLong": number}},
        "verdicts": [
            {"rule": rule, "action": "Observe", "step": number, "value": number, "threshold": 1}
            for rule in ("NegativeKL", "KLAboveLimit")
        ],
    }
    result = StageResult.from_message(json.dumps(document))
    assert result is not None
    phase = ProcessPhase.FAILED if code else ProcessPhase.SUCCEEDED
    ended = t.process("ppo", phase=phase, exit_code=code, finished_at=t.now, result=result)
    t.put("ppo", processes=(ended,), complete=not code, failed=bool(code))
    t.look()
    check(t.job.status)
    t.spec(suspend=True)
    t.look(1)
    check(t.job.status)
    if code:
        assert t.job.status.phase == "Suspended"
    else:
        assert t.job.status.phase == "Succeeded"
