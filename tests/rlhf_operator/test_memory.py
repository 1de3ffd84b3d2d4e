"""What is remembered of refused actions: when each may be tried again, and of which attempt."""

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.memory import (
    EXPIRY,
    FIRST_RETRY_SECONDS,
    LAST_RETRY_SECONDS,
    READ,
    REMEMBERED_TRIES,
    SERVICE,
    ActionId,
    Lookup,
    Memory,
)
from rlhf_operator.planning.actions import StartAttempt, StopAttempt
from rlhf_operator.planning.observed import ObservedProcess, Refusal

START: ActionId = (StartAttempt, StageName.SFT, 1)
STOP: ActionId = (StopAttempt, StageName.SFT, 1)
FIRST = (StageName.SFT, 1)
NEXT: ActionId = (StartAttempt, StageName.SFT, 2)
NO = Refusal(Reason.FORBIDDEN, "no")


@pytest.mark.parametrize(("other", "may"), [(START, False), (STOP, True), (NEXT, True)])
def test_a_refusal_delays_the_same_action_and_no_other(other: ActionId, may: bool) -> None:
    memory = Memory()
    assert memory.refuse(START, NO, 100.0)
    assert memory.may_try(other, 100.1) is may


def test_an_action_is_tried_later_after_each_refusal() -> None:
    memory, waits = Memory(), []
    for _ in range(20):
        memory.refuse(START, NO, 0.0)
        waits.append(memory.next_try())
    assert waits[:3] == [FIRST_RETRY_SECONDS, 2 * FIRST_RETRY_SECONDS, 4 * FIRST_RETRY_SECONDS]
    assert waits[-1] == LAST_RETRY_SECONDS
    assert memory.may_try(START, LAST_RETRY_SECONDS)
    memory.refuse(STOP, Refusal(Reason.FORBIDDEN, "no", at_least=15), 0.0)
    assert memory.next_try() == 15


def test_a_refusal_is_news_once_and_is_told_by_attempt() -> None:
    memory = Memory()
    assert memory.refuse(STOP, NO, 0.0)
    assert not memory.refuse(STOP, NO, 1.0)
    assert memory.refuse(STOP, Refusal(Reason.API_ERROR, "busy"), 2.0)
    assert memory.refusals() == {(StageName.SFT, 1): Refusal(Reason.API_ERROR, "busy")}


def refused(message: str, reason: Reason = Reason.WEBHOOK_DENIED, child: str = "a") -> Refusal:
    return Refusal(reason, message, child=child)


@pytest.mark.parametrize(
    ("second", "third", "told"),
    [
        ("trace red", "trace blue", ["trace", "trace", "trace"]),
        ("two pods", "two pods", ["trace", "trace", "two pods"]),
        ("two pods", "trace", ["trace", "trace", "trace"]),
    ],
)
def test_other_words_for_the_same_are_told_when_they_are_repeated(
    second: str, third: str, told: list[str]
) -> None:
    memory, found = Memory(), []
    for said in ("trace", second, third):
        memory.refuse(START, refused(said), 0.0)
        found.append(memory.refusals()[START[1:]].message)
    assert found == told
    lookup, heard = Lookup(0.0), []
    for said in ("trace", second, third):
        lookup.hear(ObservedProcess("a-?", -1, reason=Reason.WEBHOOK_DENIED, message=said))
        assert lookup.found is not None
        heard.append(lookup.found.message)
    assert heard == told


def turns(names: str) -> tuple[list[str], list[str]]:
    """What is told of a refusal, and of pods that are refused, as one text follows another."""
    memory, lookup, of_children, of_pods = Memory(), Lookup(0.0), [], []
    for name in names:
        memory.refuse(START, refused(name, Reason.QUOTA_EXCEEDED), 0.0)
        of_children.append(memory.refusals()[START[1:]].message)
        lookup.hear(ObservedProcess("a-?", -1, reason=Reason.QUOTA_EXCEEDED, message=name))
        assert lookup.found is not None
        of_pods.append(lookup.found.message)
    return of_children, of_pods


def test_texts_that_take_turns_are_told_in_the_words_of_one() -> None:
    """The API server names one of several quotas that are exceeded, and each time any."""
    for told in turns("abbacbbccaabbccaaacbbcabccab" * 9):
        assert "".join(told).startswith("aabbbbbb")
        assert set(told[2:]) == {"b"}


def test_words_that_have_taken_turns_are_left_when_nothing_says_them_any_more() -> None:
    for told in turns("aba" + "b" * (REMEMBERED_TRIES - 1)):
        assert (told[-2], told[-1]) == ("a", "b")
    for told in turns("aba" + "bc" * (REMEMBERED_TRIES // 2) + "c"):
        assert (told[-2], told[-1]) == ("a", "c")


@pytest.mark.parametrize("other", [refused("no", Reason.QUOTA_EXCEEDED), refused("no", child="b")])
def test_another_reason_or_another_child_is_told_at_once(other: Refusal) -> None:
    memory = Memory()
    memory.refuse(START, refused("yes"), 0.0)
    assert memory.refuse(START, other, 1.0)
    assert memory.refusals() == {START[1:]: other}
    lookup = Lookup(0.0)
    lookup.hear(ObservedProcess("a-?", -1))
    lookup.hear(ObservedProcess("a-?", -1, reason=Reason.API_ERROR, message="no"))
    assert lookup.found is not None
    assert lookup.found.message == "no"


def test_the_refusal_of_what_is_not_wanted_any_more_is_forgotten() -> None:
    memory = Memory()
    for ident in (START, NEXT):
        memory.refuse(ident, NO, 0.0)
    memory.forget_all_but([STOP, NEXT])
    assert memory.refused.keys() == {NEXT}


def test_a_refused_read_lasts_as_long_as_its_object_has_to_be_asked_for() -> None:
    memory = Memory()
    job: ActionId = (READ, *FIRST)
    service: ActionId = (SERVICE, *FIRST)
    for ident in (START, job, service, EXPIRY):
        memory.refuse(ident, NO, 0.0)
    memory.forget_all_but([])
    assert memory.refused.keys() == {job, service, EXPIRY}
    for what in (READ, SERVICE):
        memory.forget_reads_but([FIRST], what)
    assert memory.unread() == {FIRST}
    assert memory.refusals() == {FIRST: NO}
    memory.forget_reads_but([(StageName.SFT, 2)])
    assert memory.unread() == set()
    assert memory.refused.keys() == {service, EXPIRY}
    memory.forget_reads_but([], SERVICE)
    assert memory.refused.keys() == {EXPIRY}


def test_what_events_told_of_an_attempt_is_forgotten_with_it() -> None:
    memory, gone, there = Memory(), (StageName.SFT, 1), (StageName.SFT, 2)
    for ident in (gone, there):
        memory.waits[ident], memory.lookups[ident] = Lookup(0.0), Lookup(0.0)
        memory.remains[ident] = None
    memory.forget_attempts_but([there])
    assert [set(each) for each in (memory.waits, memory.lookups, memory.remains)] == [{there}] * 3
