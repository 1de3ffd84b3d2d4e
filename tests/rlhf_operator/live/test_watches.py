"""What ends a watch, and what comes while it is down: nothing is missed, and nothing done twice.

The resync is set far off in every test: what is seen is seen by the watches.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from api_proxy import ApiProxy, Call, Predicate, error_event, gone, list_of, watch_of
from operating import Jobs, OperatorProcess, eventually, stage

from rlhf_api.names import OPERATOR_NAME
from rlhf_operator.memory import LACKING_SECONDS
from rlhf_operator.watches import NAMESPACE_SECONDS

PLURALS = ("rlhfjobs", "jobs", "pods")
SOON = 60.0
"""Seconds: many times what a watch takes that is begun anew, and far from the next resync."""
STARTS = "rlhf_operator_watch_starts_total"
PASSES = "rlhf_operator_reconcile_duration_seconds_count"
PPO = stage(model={"fromStage": "sft"}, rewardModel={"fromStage": "reward"})

Start = Callable[[], OperatorProcess]


def any_watch(call: Call) -> bool:
    return call.watches


def not_of_the_lease(call: Call) -> bool:
    return "/leases" not in call.path


@pytest.fixture
def proxy(jobs: Jobs, tmp_path: Path) -> Iterator[ApiProxy]:
    with ApiProxy(jobs.access.kubeconfig, tmp_path) as found:
        yield found


@pytest.fixture
def start(jobs: Jobs, proxy: ApiProxy, tmp_path: Path) -> Iterator[Start]:
    """Starts an operator by way of the proxy; none may complain of a fault of its own."""
    started = []

    def begin() -> OperatorProcess:
        found = OperatorProcess(
            jobs.access,
            jobs.namespace,
            tmp_path,
            kubeconfig=str(proxy.kubeconfig),
            RESYNC_SECONDS="10000",
        )
        started.append(found)
        found.wait_until_leading()
        return found

    yield begin
    for each in started:
        each.end_well()


def ready(operator: OperatorProcess) -> OperatorProcess:
    eventually(operator.is_ready)
    return operator


def run_to_the_end(jobs: Jobs, name: str) -> None:
    """A job whose every step is seen by another watch."""
    jobs.create(name)
    jobs.run(name)
    jobs.reaches(name, "Running")
    jobs.finish(name)
    eventually(lambda: jobs.phase(name) == "Succeeded")


def written(proxy: ApiProxy, before: int) -> list[str]:
    """What the operator wrote after so many calls, but for its Lease."""
    calls = proxy.calls[before:]
    return [f"{c.method} {c.path}" for c in calls if c.method != "GET" and not_of_the_lease(c)]


def watched_again(proxy: ApiProxy, before: int, fits: Predicate) -> bool:
    """Whether watches were begun after so many calls, and are open."""
    begun = [call for call in proxy.calls[before:] if fits(call)]
    return bool(begun) and proxy.watching(any_watch) == len(PLURALS)


@pytest.mark.parametrize("plural", PLURALS)
@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_a_stream_that_ends_is_begun_anew(
    jobs: Jobs, proxy: ApiProxy, start: Start, plural: str, fault: str
) -> None:
    operator = ready(start())
    eventually(lambda: proxy.watching(any_watch) == len(PLURALS))
    fits, before = watch_of(plural), len(proxy.calls)
    struck = proxy.cut(fits) if fault == "cut" else proxy.inject(fits, gone())
    assert struck == 1
    eventually(lambda: watched_again(proxy, before, fits), SOON)
    run_to_the_end(jobs, "after")
    assert operator.metric(STARTS, watch=jobs.namespace) == 1


@pytest.mark.parametrize("plural", PLURALS)
def test_a_watch_that_fails_is_begun_anew(
    jobs: Jobs, proxy: ApiProxy, start: Start, plural: str
) -> None:
    """kopf's own process goes on, and says nothing, when the task of one watch has ended."""
    operator = ready(start())
    run_to_the_end(jobs, "before")
    fits, before = watch_of(plural), len(proxy.calls)
    assert proxy.inject(fits, error_event(500, "InternalError", "etcd is on fire")) == 1
    eventually(lambda: operator.metric(STARTS, watch=jobs.namespace) == 2, SOON)
    eventually(lambda: watched_again(proxy, before, fits), SOON)
    eventually(operator.is_ready, SOON)
    run_to_the_end(jobs, "after")
    assert "etcd is on fire" in operator.log.read_text()
    assert operator.metric("rlhf_operator_namespace_missing", watch=jobs.namespace) == 0


def test_an_api_server_that_is_away_is_found_again(
    jobs: Jobs, proxy: ApiProxy, start: Start
) -> None:
    operator = ready(start())
    # The Lease is renewed meanwhile: a leader that loses it ends, and its successor begins anew.
    proxy.drop(not_of_the_lease)
    proxy.cut(any_watch)
    jobs.create("meanwhile")
    time.sleep(20)
    assert operator.probe("/healthz") == (200, "ok")
    proxy.release()
    jobs.run("meanwhile")
    jobs.reaches("meanwhile", "Running", seconds=SOON)
    eventually(operator.is_ready, SOON)


def test_a_job_deleted_unseen_is_seen_as_vanished(
    jobs: Jobs, proxy: ApiProxy, start: Start
) -> None:
    """kopf lists anew after 410 in silence, and tells of no deletion."""
    operator = ready(start())
    jobs.create("lost")
    jobs.run("lost")
    jobs.reaches("lost", "Running")
    down = proxy.drop(any_watch)
    proxy.cut(any_watch)
    jobs.batch.delete_namespaced_job(
        "lost-sft-1", jobs.namespace, propagation_policy="Background", grace_period_seconds=0
    )
    eventually(lambda: not jobs.pods("lost"))
    for plural in PLURALS:
        proxy.expire(watch_of(plural))
    proxy.release(down)
    jobs.run("lost", attempt=2)
    jobs.reaches("lost", "Running", attempt=2)
    assert operator.metric(STARTS, watch=jobs.namespace) == 1


def test_a_job_that_got_back_the_label_of_ours_is_seen(jobs: Jobs, start: Start) -> None:
    ready(start())
    jobs.create("label")
    jobs.run("label")
    jobs.reaches("label", "Running")
    jobs.relabel("label-sft-1", None)
    eventually(lambda: jobs.condition("label", "ChildrenIntact").get("reason") == "ChildChanged")
    jobs.relabel("label-sft-1", OPERATOR_NAME)
    eventually(lambda: jobs.condition("label", "ChildrenIntact")["status"] == "True")
    jobs.finish("label")
    eventually(lambda: jobs.phase("label") == "Succeeded")
    assert jobs.stage("label")["attempt"] == 1


@pytest.mark.parametrize("failed", [False, True], ids=["relisted by kopf", "begun anew"])
def test_an_rlhfjob_deleted_unseen_is_forgotten(
    jobs: Jobs, proxy: ApiProxy, start: Start, failed: bool
) -> None:
    operator = ready(start())
    # At rest: a job that is written to would be missed by the answer.
    jobs.create("gone", suspend=True)
    eventually(lambda: jobs.phase("gone") == "Suspended")
    down = proxy.drop(not_of_the_lease if failed else any_watch)
    if failed:
        proxy.inject(any_watch, error_event(500, "InternalError", "etcd is on fire"))
    else:
        proxy.cut(any_watch)
    eventually(lambda: proxy.watching(any_watch) == 0)
    jobs.delete("gone")
    passes, before = operator.metric(PASSES), len(proxy.calls)
    if not failed:
        for plural in PLURALS:
            proxy.expire(watch_of(plural))
    proxy.release(down)
    # The pass in which everything that was kept of the job is forgotten.
    eventually(lambda: operator.metric(PASSES) > passes)
    eventually(lambda: proxy.watching(any_watch) == len(PLURALS))
    assert operator.metric(PASSES) == passes + 1
    assert not written(proxy, before)
    run_to_the_end(jobs, "gone")


def test_nothing_is_done_before_the_first_lists_are_in(
    jobs: Jobs, proxy: ApiProxy, start: Start
) -> None:
    first = ready(start())
    jobs.create("runs")
    jobs.run("runs")
    jobs.reaches("runs", "Running")
    assert first.end() == 0
    version = jobs.get("runs")["metadata"]["resourceVersion"]
    held, before = proxy.hold(list_of("jobs")), len(proxy.calls)
    operator = start()
    for plural in ("rlhfjobs", "pods"):
        eventually(partial(proxy.watching, watch_of(plural)))
    # A pass over what has come in so far would be made at once.
    time.sleep(2)
    assert operator.probe("/readyz") == (500, "the store is not filled yet")
    assert operator.metric(PASSES) == 0
    assert not written(proxy, before)
    proxy.release(held)
    eventually(operator.is_ready)
    eventually(lambda: operator.metric(PASSES) > 0)
    assert jobs.get("runs")["metadata"]["resourceVersion"] == version
    jobs.finish("runs")
    eventually(lambda: jobs.phase("runs") == "Succeeded")
    assert jobs.stage("runs")["attempt"] == 1


def test_nothing_is_done_while_the_store_is_filled_again(
    jobs: Jobs, proxy: ApiProxy, start: Start
) -> None:
    """Though a try that was refused is due, and has been since before the watch began anew."""
    operator = ready(start())
    jobs.create("claimless", storage={"uri": "pvc://later/runs"})
    eventually(lambda: jobs.condition("claimless", "ChildrenReady").get("reason") == "ClaimMissing")
    held = proxy.hold(list_of("jobs"))
    assert proxy.inject(watch_of("pods"), error_event(500, "InternalError", "etcd is on fire"))
    eventually(lambda: operator.metric(STARTS, watch=jobs.namespace) == 2, SOON)
    passes = operator.metric(PASSES)
    jobs.claim("later")
    # Many times the five seconds after which a missing claim is looked for again.
    time.sleep(15)
    assert operator.metric(PASSES) == passes
    proxy.release(held)
    jobs.run("claimless")
    jobs.reaches("claimless", "Running")


def test_an_empty_answer_is_no_empty_list(jobs: Jobs, proxy: ApiProxy, start: Start) -> None:
    first = ready(start())
    jobs.create("runs")
    jobs.run("runs")
    jobs.reaches("runs", "Running")
    assert first.end() == 0
    is_list = list_of("jobs")
    nothing = proxy.answer_nothing(
        lambda call: is_list(call) and call.agent.startswith("rlhf-operator")
    )
    operator = start()
    complaint = "the answer is no list"
    eventually(lambda: complaint in operator.probe("/readyz")[1], SOON)
    assert operator.metric(PASSES) == 0
    proxy.release(nothing)
    eventually(operator.is_ready, SOON)
    jobs.finish("runs")
    eventually(lambda: jobs.phase("runs") == "Succeeded")
    assert jobs.stage("runs")["attempt"] == 1


@pytest.mark.timeout(10 * NAMESPACE_SECONDS)
def test_an_empty_answer_about_the_namespace_does_not_end_its_watch(
    jobs: Jobs, proxy: ApiProxy, start: Start
) -> None:
    operator = ready(start())
    path = f"/api/v1/namespaces/{jobs.namespace}"
    before = len(proxy.calls)
    proxy.answer_nothing(lambda call: call.path == path)
    looked = 5 * NAMESPACE_SECONDS
    eventually(lambda: any(call.path == path for call in proxy.calls[before:]), looked)
    run_to_the_end(jobs, "after")
    assert operator.metric(STARTS, watch=jobs.namespace) == 1
    assert operator.probe("/healthz") == (200, "ok")


def test_the_echo_of_own_writes_starts_no_pass(jobs: Jobs, proxy: ApiProxy, start: Start) -> None:
    operator = ready(start())
    # So that no echo comes before the answer, however long that takes to be read.
    late = proxy.delay(watch_of("rlhfjobs"), 3.0)
    for number in range(3):
        # Nothing but the status is written for a job that is suspended.
        jobs.create(f"still-{number}", suspend=True)
    for number in range(3):
        eventually(lambda name=f"still-{number}": jobs.phase(name) == "Suspended")
    time.sleep(5)
    assert operator.metric(PASSES) == 3
    proxy.release(late)
    # An event that the store knows already: kopf lists all anew.
    listed = len(proxy.calls)
    assert proxy.inject(any_watch, gone()) == len(PLURALS)
    for plural in PLURALS:
        eventually(partial(watched_again, proxy, listed, watch_of(plural)))
    time.sleep(1)
    assert operator.metric(PASSES) == 3


def test_what_was_written_and_not_answered_is_told_once(
    jobs: Jobs, proxy: ApiProxy, start: Start
) -> None:
    ready(start())
    path = f"/namespaces/{jobs.namespace}/rlhfjobs/unanswered/status"
    lost = [
        proxy.lose(lambda call: (call.method, call.path[-len(path) :]) == ("PATCH", path))
        for _ in range(2)
    ]
    jobs.create("unanswered")
    jobs.run("unanswered")
    jobs.reaches("unanswered", "Running")
    jobs.finish("unanswered")
    eventually(lambda: jobs.phase("unanswered") == "Succeeded")
    assert not any(proxy.is_in_force(rule) for rule in lost)
    told = ["Created", "Finished", "PodsReady", "StagesComplete"]
    eventually(lambda: len(jobs.events("unanswered")) >= len(told))
    time.sleep(1)
    assert sorted(reason for _, reason in jobs.events("unanswered")) == told


def test_few_passes_for_three_stages_and_no_reads_at_rest(
    jobs: Jobs, proxy: ApiProxy, start: Start, say: Callable[[str], None]
) -> None:
    operator = ready(start())
    started = time.monotonic()
    jobs.create("whole", stages={"sft": stage(), "reward": stage(), "ppo": PPO})
    for name in ("sft", "reward", "ppo"):
        jobs.run("whole", name)
        jobs.reaches("whole", "Running", name)
        jobs.finish("whole", name)
        jobs.reaches("whole", "Succeeded", name)
    eventually(lambda: jobs.phase("whole") == "Succeeded")
    jobs.create("resting")
    jobs.run("resting")
    jobs.reaches("resting", "Running")
    passes = operator.metric(PASSES)
    # A start is looked at again when it has waited so long.
    waits = (time.monotonic() - started) // LACKING_SECONDS

    # The namespace itself is looked for now and then.
    def calls() -> list[str]:
        return [
            f"{call.method} {call.path}"
            for call in proxy.calls
            if not_of_the_lease(call) and call.path != f"/api/v1/namespaces/{jobs.namespace}"
        ]

    def rests() -> bool:
        passes, before = operator.metric(PASSES), len(calls())
        time.sleep(20)
        return len(calls()) == before and operator.metric(PASSES) - passes <= 1

    eventually(rests, 120, what=lambda: f"20 s without a call; the last ones are {calls()[-5:]}")
    say(f"{passes:.0f} passes")
    # Each stage: made; pods come, run and end; three or four writes of the Job controller.
    assert passes <= 4 * 10 + 1 + waits


def test_a_rolling_update_of_two_replicas_goes_through(
    jobs: Jobs, start: Start, tmp_path: Path
) -> None:
    first = ready(start())
    second = OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    try:
        eventually(lambda: "serving" in second.log.read_text())
        eventually(second.is_ready)
        assert " leads" not in second.log.read_text()
        run_to_the_end(jobs, "before")
        assert first.end() == 0
        second.wait_until_leading()
        eventually(second.is_ready)
        assert second.probe("/healthz") == (200, "ok")
        run_to_the_end(jobs, "after")
    finally:
        second.end()
