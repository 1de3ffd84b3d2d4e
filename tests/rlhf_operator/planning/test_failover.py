"""A new leader judges what it sees and what is written as the old one would have."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.observed import ProcessPhase

MakeTrial = Callable[..., Any]


def failover(trial: Any) -> None:
    """The leader dies, and with it what only it was told."""
    trial.put("sft", progress=None)
    trial.refusals.clear()


@pytest.mark.parametrize(("step", "state"), [(0, "Failed"), (9000, "Restarting")])
def test_out_of_memory_is_final_before_the_first_step_alone(
    trial: MakeTrial, step: int, state: str
) -> None:
    t = trial().running("sft")
    t.run("sft", step=step)
    t.look()
    failover(t)
    t.end("sft", 137, result=None, reason=Reason.OUT_OF_MEMORY, message="exceeded its limit")
    t.look()
    assert t.stage("sft").state == state


@pytest.mark.parametrize(("found", "restarts"), [(10, 0), (20, 1), (None, 0)])
def test_a_lost_node_costs_no_restart_if_the_checkpoint_had_grown(
    trial: MakeTrial, found: int | None, restarts: int
) -> None:
    t = trial().running("sft")
    t.put("sft", checkpoint_step=found)
    t.run("sft", step=25, last_checkpoint_step=20)
    t.look()
    failover(t)
    silent = {"phase": ProcessPhase.RUNNING, "lost": True, "disrupted": True}
    t.put("sft", processes=(t.process("sft", **silent),))
    t.look()
    sft = t.stage("sft")
    assert (sft.restarts, sft.disruptions) == (restarts, 1 - restarts)


def disrupt(trial: Any) -> None:
    """The pod is marked as one that is about to be evicted, and still runs."""
    message = "pod reviews-sft-1-0 was disrupted: node drain"
    marked = {"phase": ProcessPhase.RUNNING, "ready": True, "disrupted": True, "message": message}
    trial.put("sft", processes=(trial.process("sft", **marked), survivor(trial)))


def survivor(trial: Any, **changes: Any) -> Any:
    return trial.process("sft", index=1, phase=ProcessPhase.RUNNING, ready=True, **changes)


@pytest.mark.parametrize("left", ["survivor", "nothing"])
def test_a_disruption_is_kept_when_its_pod_is_gone(trial: MakeTrial, left: str) -> None:
    t = trial(runPolicy={"maxRestarts": 0}).running("sft")
    t.run("sft", step=25, last_checkpoint_step=20)
    disrupt(t)
    t.look()
    message = "pod reviews-sft-1-0 was disrupted: node drain"
    assert (t.stage("sft").state, t.stage("sft").disruption) == ("Running", message)
    failover(t)
    lost_peer = t.process("sft", index=1, phase=ProcessPhase.FAILED, exit_code=80)
    t.put("sft", processes=(lost_peer,) if left == "survivor" else (), failed=True)
    t.look()
    sft = t.stage("sft")
    assert (sft.state, sft.reason, sft.message) == ("Restarting", Reason.DISRUPTED, message)
    assert (sft.restarts, sft.disruptions) == (0, 1)
    t.look(1)
    assert (t.started(), t.stage("sft").disruption) == ([("sft", 2)], None)


def test_the_first_disruption_is_the_one_that_is_kept(trial: MakeTrial) -> None:
    t = trial().running("sft")
    disrupt(t)
    t.look()
    before = t.stage("sft").disruption
    t.put("sft", processes=(survivor(t, disrupted=True, message="another"),))
    t.look()
    assert t.stage("sft").disruption == before


def test_a_disruption_that_is_taken_back_is_forgotten(trial: MakeTrial) -> None:
    """Kubernetes turns a stale DisruptionTarget to False, and a later mistake is one."""
    t = trial().running("sft")
    target = {"phase": ProcessPhase.RUNNING, "ready": True, "disrupted": True, "message": "drained"}
    t.put("sft", processes=(t.process("sft", **target),))
    t.look()
    assert t.stage("sft").disruption == "drained"
    t.run("sft", step=5)
    t.look()
    assert t.stage("sft").disruption is None
    t.end("sft", 65)
    t.look()
    assert t.stage("sft").state == "Failed"


def test_an_attempt_that_completes_though_it_was_disrupted_has_not_failed(
    trial: MakeTrial,
) -> None:
    t = trial().running("sft")
    disrupt(t)
    t.look()
    t.finish("sft")
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Succeeded", 0)


def sure(trial: Any) -> None:
    trial.put("sft", confirmed=True)


@pytest.mark.parametrize("seen", ["none", "running", "ended", "silent"])
@pytest.mark.parametrize("suspend", [False, True])
def test_a_job_that_is_complete_before_its_pods_is_waited_for(
    trial: MakeTrial, seen: str, suspend: bool
) -> None:
    t = trial(runPolicy={"stageDeadlineSeconds": 60, "activeDeadlineSeconds": 60}).running("sft")
    before = t.stage("sft")
    done = {"phase": ProcessPhase.SUCCEEDED, "exit_code": 0}
    processes = {
        "none": (),
        "running": (survivor(t),),
        "ended": (t.process("sft", **done),),
        "silent": (t.process("sft", **done, result=t.result("sft", artifact=None)),),
    }
    t.put("sft", processes=processes[seen], complete=True, confirmed=False)
    t.spec(suspend=suspend)
    t.look(100)
    assert (t.stage("sft"), t.last.actions) == (before, ())
    assert t.stage("reward").state == "Waiting"
    assert t.last.unconfirmed == ((StageName.SFT, 1),)
    sure(t)
    t.look()
    assert t.last.unconfirmed == ()
    assert t.stage("sft").state != "Running"


def test_a_complete_job_with_its_result_needs_no_listing(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.finish("sft")
    t.put("sft", confirmed=False)
    t.look()
    assert (t.stage("sft").state, t.last.unconfirmed) == ("Succeeded", ())


@pytest.mark.parametrize("suspend", [False, True])
def test_a_job_that_failed_before_its_pods_is_waited_for(trial: MakeTrial, suspend: bool) -> None:
    t = trial().running("sft")
    t.spec(suspend=suspend)
    t.look()
    before = t.stage("sft")
    t.put("sft", processes=(), failed=True, confirmed=False)
    t.look()
    assert (t.stage("sft"), t.last.unconfirmed) == (before, ((StageName.SFT, 1),))
    t.end("sft", 75, said={"last_checkpoint_step": 30})
    t.look()
    assert (t.stage("sft").disruptions, t.last.unconfirmed) == (1, ())


def test_a_failure_that_is_seen_is_judged_at_once(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR})
    t.put("sft", confirmed=False)
    t.look()
    assert (t.stage("sft").reason, t.last.unconfirmed) == (Reason.DATA_ERROR, ())


OTHER = "sha256:" + "d" * 64


def with_digest(trial: Any, digest: str) -> None:
    """The attempt was announced by another release, which made another configuration."""
    status = trial.job.status
    sft = status.stages.sft.model_copy(update={"config_digest": digest})
    stages = status.stages.model_copy(update={"sft": sft})
    status = status.model_copy(update={"stages": stages})
    trial.job = trial.job.model_copy(update={"status": status})


def test_an_announced_attempt_is_not_made_with_another_configuration(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    mine = t.stage("sft").config_digest
    with_digest(t, OTHER)
    t.look()
    assert t.started() == [("sft", 2)]
    sft = t.stage("sft")
    assert (sft.state, sft.config_digest, sft.restarts, sft.disruptions) == ("Starting", mine, 0, 0)


def test_an_attempt_that_is_made_keeps_its_configuration(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    with_digest(t, OTHER)
    t.put("sft", processes=(t.process("sft"),))
    t.look()
    assert (t.started(), t.stage("sft").attempt, t.stage("sft").config_digest) == ([], 1, OTHER)


@pytest.mark.parametrize("over", [False, True])
def test_processes_that_still_run_when_all_is_over_are_looked_at_again(
    trial: MakeTrial, over: bool
) -> None:
    t = trial().running("sft")
    crashed = t.process("sft", phase=ProcessPhase.FAILED, exit_code=80, finished_at=t.now)
    t.put("sft", processes=(crashed, survivor(t)), failed=True, over=over, confirmed=False)
    # Not even when the wait for the others is over.
    t.look(60)
    assert t.last.unconfirmed == (((StageName.SFT, 1),) if over else ())
    assert t.stage("sft").state == ("Running" if over else "Restarting")
