"""How often the operator asks and tries, what it does first, and which time counts."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from admission import Webhook
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from operating import Jobs, OperatorProcess, eventually, stage
from waiting import is_still

from rlhf_operator.memory import LACKING_SECONDS

Requests = Callable[[], list[str]]

RETRY_SECONDS = 15
"""Before then nothing is tried again that a policy or a quota has refused."""

WHY_PODS_WAIT = ("list events?fieldSelector=", "list pods?")
"""What is asked of a Job that lacks pods, or has more than are seen, and of pods on their nodes."""

PPO = stage(model={"fromStage": "sft"}, rewardModel={"fromStage": "reward"})
REWARD = stage(model={"fromStage": "sft"})


def probe(jobs: Jobs) -> dict[str, Any]:
    """A Job that nobody runs."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}
    name = f"probe-{uuid4().hex[:8]}"
    return {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}


def is_denied(jobs: Jobs) -> bool:
    """Whether the webhook for Jobs is in force by now."""
    try:
        jobs.batch.create_namespaced_job(jobs.namespace, probe(jobs), dry_run="All")
    except ApiException as error:
        return "denied the request" in str(error.body)
    return False


def test_a_refusal_that_reads_otherwise_each_time_is_tried_and_told_seldom(
    operator: OperatorProcess,
    jobs: Jobs,
    requests: Requests,
    webhook: Callable[[str], Webhook],
) -> None:
    webhook("jobs").answer(lambda _: f"not on Fridays (trace {uuid4()}, took {time.time_ns()} ns)")
    eventually(lambda: is_denied(jobs))
    started = time.monotonic()
    jobs.create("denied")
    told = eventually(lambda: jobs.condition("denied", "ChildrenReady"))
    for number in range(100):
        jobs.label("denied", turn=str(number))
        jobs.patch_status("denied", summary={"kl": str(number)})
        time.sleep(0.04)
    made = Counter(requests())
    # None, unless the machine is slow: a hundred turns take four seconds.
    retries = (time.monotonic() - started) // RETRY_SECONDS
    again = jobs.condition("denied", "ChildrenReady")
    assert (told["status"], told["reason"], again) == ("False", "WebhookDenied", told)
    assert "Job denied-sft-1: admission webhook" in told["message"]
    assert "not on Fridays (trace ..., took ... ns)" in told["message"]
    assert "change the policy" in told["message"]
    assert 1 <= made["create jobs"] <= 1 + retries, made
    assert made["patch rlhfjobs/denied/status"] <= 5 + retries, made
    assert jobs.phase("denied") == "Pending"


def test_a_pass_sends_its_writes_and_no_more(
    operator: OperatorProcess, jobs: Jobs, requests: Requests
) -> None:
    # Its first LISTs, which fill the store, are over.
    jobs.create("first")
    jobs.run("first")
    jobs.reaches("first", "Running")
    eventually(lambda: is_still(lambda: len(requests()), 2), what="its requests are logged")
    before, started = len(requests()), time.monotonic()
    jobs.create("lean", stages={"sft": stage(), "reward": REWARD, "ppo": PPO})
    for name in ("sft", "reward", "ppo"):
        jobs.run("lean", name)
        jobs.reaches("lean", "Running", name)
        jobs.finish("lean", name)
        jobs.reaches("lean", "Succeeded", name)
    eventually(lambda: jobs.phase("lean") == "Succeeded")
    time.sleep(1)
    made = requests()[before:]
    reads = Counter(each for each in made if each.split()[0] in ("get", "list"))
    allowed = Counter({"get persistentvolumeclaims/runs": 3, "get services/lean": 2})
    # None, unless the machine is slow: of pods that do not come, or do not start, it asks why.
    waits = (time.monotonic() - started) // LACKING_SECONDS
    asked = Counter({each: reads[each] for each in reads if each.startswith(WHY_PODS_WAIT)})
    listing = "\n".join(made)
    assert asked.total() <= 2 * waits, listing
    assert reads - asked <= allowed, listing
    # It is told, and that it is over.
    assert len(made) - reads.total() <= 17 + 2 * waits, listing


def asks(jobs: Jobs, hook: Webhook) -> None:
    """Wait until the API server asks a webhook for Events; what it was asked is forgotten."""
    about = {"kind": "Namespace", "name": jobs.namespace, "namespace": jobs.namespace}
    event = {"metadata": {"generateName": "probe."}, "involvedObject": about}
    create = jobs.core.create_namespaced_event
    eventually(lambda: create(jobs.namespace, event) and hook.asked)
    hook.asked.clear()


def of_rlhfjobs(hook: Webhook) -> list[str]:
    """Names of the Events about RLHFJobs that a webhook was asked about, not those of Jobs."""
    return [name for name in hook.asked if "-sft-" not in name]


def starts_told(operator: OperatorProcess) -> int:
    """How many first attempts its log has told of."""
    lines = operator.log.read_text().splitlines()
    return sum(": Created: stage sft: attempt 1 starts" in line for line in lines)


def test_a_start_does_not_wait_for_events(
    operator: OperatorProcess, jobs: Jobs, webhook: Callable[[str], Webhook]
) -> None:
    hook = webhook("events").answer(lambda _: None, seconds=5.0)
    asks(jobs, hook)
    for number in range(10):
        jobs.create(f"first-{number}")
    eventually(lambda: hook.asked)
    jobs.create("last")
    eventually(lambda: jobs.batch.list_namespaced_job(jobs.namespace, watch=False).items)
    jobs.run("last")
    jobs.reaches("last", "Running")
    eventually(lambda: starts_told(operator) == 11)
    # Each of them takes five seconds.
    assert len(of_rlhfjobs(hook)) < 11, hook.asked


def test_no_event_is_told_after_the_loss_of_the_lease(
    control_plane: Access,
    own_control_plane: ControlPlane,
    jobs: Jobs,
    webhook: Callable[[str], Webhook],
    tmp_path: Path,
) -> None:
    operator = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    try:
        operator.wait_until_leading()
        hook = webhook("events").answer(lambda _: None, seconds=1.0)
        asks(jobs, hook)
        for number in range(20):
            jobs.create(f"told-{number}")
        eventually(lambda: starts_told(operator) == 20)
        eventually(lambda: len(of_rlhfjobs(hook)) > 1)
        thief = {"spec": {"holderIdentity": "thief", "renewTime": None}}
        leases = client.CoordinationV1Api(jobs.access.api)
        leases.patch_namespaced_lease("rlhf-operator", jobs.namespace, thief)
        assert operator.end(0) == 1
        ended = datetime.now(UTC)
    finally:
        operator.end()
    log = operator.log.read_text()
    told = starts_told(operator)
    assert told == 20
    line = next(each for each in log.splitlines() if "is stopping its work" in each)
    lost = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone(UTC)
    assert lost < ended
    made = [
        datetime.fromisoformat(event["requestReceivedTimestamp"])
        for event in own_control_plane.audit_events()
        if event["userAgent"].startswith("rlhf-operator")
        and event["verb"] == "create"
        and f"/namespaces/{jobs.namespace}/events" in event["requestURI"]
    ]
    assert 0 < len(made) < told
    # They are told one after another: one may have been on its way.
    late = [at for at in made if at > lost]
    assert len(late) <= 1, (lost, late)


def is_suspended(jobs: Jobs, child: str) -> bool:
    """Whether the Job controller has told that a Job may not run; it makes pods a moment before."""
    found = jobs.batch.read_namespaced_job(child, jobs.namespace).status.conditions or ()
    return any(each.type == "Suspended" and each.status == "True" for each in found)


def test_time_in_a_queue_and_under_a_quota_counts_for_no_deadline(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    quota = {"metadata": {"name": "one"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    jobs.core.create_namespaced_resource_quota(jobs.namespace, quota)
    read = jobs.core.read_namespaced_resource_quota
    eventually(lambda: (read("one", jobs.namespace).status.hard or {}).get("count/jobs.batch"))
    jobs.create("held", queueName="team")
    eventually(lambda: jobs.stage("held").get("reason") == "Queued")
    jobs.create("crowded")
    eventually(lambda: jobs.stage("crowded").get("reason") == "QuotaExceeded")
    jobs.patch("held", runPolicy={"pendingDeadlineSeconds": 5})
    limits = {"stageDeadlineSeconds": 5, "activeDeadlineSeconds": 5}
    jobs.patch("crowded", runPolicy=limits)
    time.sleep(8)
    assert jobs.stage("held")["state"] == "Starting"
    assert jobs.stage("crowded")["state"] == "Starting"
    assert jobs.condition("crowded", "Failed") == {}
    # From here on time counts, and it may take some to run.
    jobs.patch("held", runPolicy={"pendingDeadlineSeconds": 300})
    # As Kueue: it may run.
    jobs.batch.patch_namespaced_job("held-sft-1", jobs.namespace, {"spec": {"suspend": False}})
    eventually(lambda: not is_suspended(jobs, "held-sft-1"))
    jobs.run("held")
    jobs.reaches("held", "Running")
    found = eventually(
        lambda: (
            told if {"idleSeconds", "pendingSince"} <= (told := jobs.stage("held")).keys() else 0
        )
    )
    assert found["idleSeconds"] >= 7
    assert jobs.get("held")["status"]["idleSeconds"] >= 7
    made, counted = (
        datetime.fromisoformat(found[key]) for key in ("attemptStartTime", "pendingSince")
    )
    assert (counted - made).total_seconds() >= 7
    assert jobs.condition("held", "Admitted")["status"] == "True"


def test_a_start_takes_a_few_times_what_the_api_server_takes(
    operator: OperatorProcess,
    jobs: Jobs,
    record_property: Callable[[str, object], None],
    say: Callable[[str], None],
) -> None:
    own, starts = [], []
    for number in range(7):
        started = time.perf_counter()
        jobs.batch.create_namespaced_job(jobs.namespace, probe(jobs))
        own.append(time.perf_counter() - started)
        started = time.perf_counter()
        jobs.create(f"fast-{number}")
        eventually(
            lambda number=number: (
                jobs.batch.list_namespaced_job(
                    jobs.namespace, field_selector=f"metadata.name=fast-{number}-sft-1"
                ).items
            ),
            pause=0.002,
        )
        starts.append(time.perf_counter() - started)
    create, start = statistics.median(own), statistics.median(starts)
    # Each start by the create before it: what else the machine does adds to both.
    ratio = statistics.median(each / made for made, each in zip(own, starts, strict=True))
    say(f"create {1000 * create:.0f} ms, start {1000 * start:.0f} ms, {ratio:.1f} x")
    record_property("start_over_create", round(ratio, 1))
    assert ratio < 15, (own, starts)
