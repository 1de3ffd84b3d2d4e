"""What is asked for because the store lacks it: how often, and what an answer that fails leaves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from answering import Asked, Session, answering
from raw_gangs import Raw, ended, job_document, look, make_job, make_pod

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.absences import ASKED_AT_ONCE, Absences
from rlhf_operator.memory import Lookup, Memory
from rlhf_operator.observe import SeenAttempt
from rlhf_operator.planning.observed import ObservedProcess
from rlhf_operator.store import Kind, Store

UNREAD = "etcdserver: request timed out"


class Answers:
    """Gives to each LIST the next of some answers; a text is an error's."""

    def __init__(self, *answers: Sequence[Raw] | str) -> None:
        self.left = list(answers)

    def answer(self, asked: Asked) -> tuple[int, Raw]:
        assert asked.method == "GET"
        said = self.left.pop(0)
        if isinstance(said, str):
            return 500, {"kind": "Status", "message": said}
        return 200, {"kind": "List", "items": list(said), "metadata": {"resourceVersion": "9"}}


@dataclass
class Asking:
    """An attempt that is asked about whenever it is looked at."""

    cluster: Answers
    session: Session
    absences: Absences
    memory: Memory

    def told(self, seen: SeenAttempt) -> ObservedProcess:
        """What is told of the attempt's last process, when Events are due."""
        for lookups in (self.memory.lookups, self.memory.waits):
            lookups.setdefault(seen.ident, Lookup(0.0)).next = 0.0
        processes, _ = self.session.wait(self.absences.missing(seen, self.memory))
        last: ObservedProcess = processes[-1]
        return last


Ask = Callable[..., Asking]


@pytest.fixture
def asking() -> Iterator[Ask]:
    with ExitStack() as stack:

        def begin(*answers: Sequence[Raw] | str) -> Asking:
            cluster = Answers(*answers)
            session = stack.enter_context(answering(cluster.answer))
            return Asking(cluster, session, Absences(session.kube, Store()), Memory())

        yield begin


def refused(said: str) -> Raw:
    return {"reason": "FailedCreate", "message": f"Error creating: {said}"}


def unmounted(said: str = 'secret "hf" not found') -> Raw:
    return {"reason": "FailedMount", "message": said}


def waits(*indices: int) -> SeenAttempt:
    pods = [waiting(index) for index in indices or (0,)]
    return look(make_job(spec={"parallelism": len(pods)}), *pods)


def waiting(index: int) -> Raw:
    creating = {"waiting": {"reason": "ContainerCreating"}}
    metadata = {"namespace": "team", "uid": f"pod-{index}"}
    pod = make_pod(index, "Pending", state=creating)
    pod["metadata"] |= metadata
    pod["status"]["containerStatuses"] = pod["status"]["containerStatuses"][1:]
    return pod


QUOTA = 'pods "demo-sft-3-0-" is forbidden: exceeded quota: q, requested: cpu=1, used: cpu=4'
LACKING = look(make_job())


@pytest.mark.parametrize(
    ("seen", "event", "reason"),
    [
        (LACKING, refused(QUOTA), Reason.QUOTA_EXCEEDED),
        (waits(), unmounted(), Reason.VOLUME_NOT_MOUNTED),
    ],
)
def test_a_cause_outlives_a_read_of_events_that_fails(
    asking: Ask, seen: SeenAttempt, event: Raw, reason: Reason
) -> None:
    ask = asking([event], UNREAD, [event])
    first = ask.told(seen)
    assert first.reason is reason
    assert [ask.told(seen), ask.told(seen)] == [first, first]


def test_events_that_cannot_be_read_are_told_of_while_no_cause_is_known(asking: Ask) -> None:
    ask = asking(UNREAD, [], UNREAD, [refused(QUOTA)])
    first = ask.told(LACKING)
    assert first.reason is Reason.PODS_PENDING
    assert "Events cannot be read: etcdserver" in first.message
    assert ask.told(LACKING).reason is None
    assert ask.told(LACKING).reason is Reason.PODS_PENDING
    assert ask.told(LACKING).reason is Reason.QUOTA_EXCEEDED


def test_nothing_is_told_of_a_waiting_pod_whose_events_cannot_be_read(asking: Ask) -> None:
    assert asking(UNREAD).told(waits()).reason is None


def test_the_pod_that_waits_next_is_told_of_in_words_of_its_own(asking: Ask) -> None:
    ask = asking([unmounted()], [unmounted()])
    assert ask.told(waits()).message.startswith("pod demo-sft-3-0-x waits on its node: ")
    assert ask.told(waits(1)).message.startswith("pod demo-sft-3-1-x waits on its node: ")


def test_all_pods_that_wait_are_asked_about_until_one_has_a_cause(asking: Ask) -> None:
    gang = waits(0, 1, 2)
    ask = asking([], [], [unmounted()], [unmounted()], [], UNREAD, [], [], [])
    for _ in range(2):
        assert ask.told(gang).reason is Reason.VOLUME_NOT_MOUNTED
    # It is over: the next ones are asked about, as far as Events can be read.
    assert ask.told(gang).reason is None
    assert len(ask.cluster.left) == 3
    assert ask.told(gang).reason is None
    assert ask.cluster.left == []


def test_a_large_gang_is_asked_about_in_parts(asking: Ask) -> None:
    gang = waits(*range(ASKED_AT_ONCE + 1))
    ask = asking(*[[]] * ASKED_AT_ONCE, [unmounted()])
    assert ask.told(gang).reason is None
    assert f"pod demo-sft-3-{ASKED_AT_ONCE}-x waits" in ask.told(gang).message


def listed(version: int, **changes: Any) -> Raw:
    """A pod whose label a policy has taken away."""
    pod = make_pod(**changes)
    pod["metadata"] |= {"namespace": "team", "uid": "pod", "resourceVersion": str(version)}
    return pod


@pytest.mark.parametrize(
    ("answers", "lists"),
    [
        ([[listed(2)]] * 4, 4),
        # Nothing follows any more from what becomes of one that has ended.
        ([[listed(2)], [listed(3, phase="Failed", state=ended(1))], [], []], 2),
        ([[listed(2)], [listed(3, state=ended(1))], [], []], 2),
        ([[listed(2)], [], [], []], 2),
    ],
)
def test_pods_that_no_watch_shows_are_listed_until_they_have_ended(
    answers: list[list[Raw]], lists: int
) -> None:
    cluster, store, memory = Answers(*answers), Store(), Memory()
    job = RLHFJob.from_document(job_document())
    store.put(Kind.JOB, make_job(("Failed",), resourceVersion="1"))
    store.replace_pods("job", answers[0], 2)
    times = []
    with answering(cluster.answer) as session:
        absences = Absences(session.kube, store)
        for _ in answers:
            memory.pod_looks = dict.fromkeys(memory.pod_looks, 0.0)
            times.append(session.wait(absences.find_unwatched_pods(job, memory)))
    assert len(answers) - len(cluster.left) == lists
    # The last pass sees that it need not look again.
    assert (times[-1] is None) is (lists < len(answers))
