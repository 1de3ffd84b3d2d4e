"""docs/troubleshooting.md says what is shown: each cause is brought about, and compared."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import staged_causes
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access
from staged_causes import NAME, Scene, events_of
from troubleshooting_causes import CAUSES, Cause
from troubleshooting_page import PAGE, read, seen
from waiting import eventually, is_still

from rlhf_api.names import Reason

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def scene(
    control_plane: Access, own_control_plane: ControlPlane, tmp_path: Path
) -> Iterator[Scene]:
    """A namespace with an operator that has no fault of its own."""
    with Scene.open(control_plane, own_control_plane, tmp_path) as opened:
        yield opened
    assert "Traceback" not in opened.operator.log.read_text()


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.title)
def test_the_page_says_what_is_shown(scene: Scene, cause: Cause) -> None:
    cause.stage(scene)
    shown = seen(scene, cause)
    assert shown == read(TEXT)[cause.title]
    place = ("-n", scene.jobs.namespace, "-o", "wide", "--no-headers")
    if shown.phase != "Restarting":  # That is soon over.
        row = scene.jobs.access.kubectl("get", "rlhf", NAME, *place).stdout.split()
        assert {shown.phase, shown.reason} - {""} <= set(row), row
    # Nothing more is told soon after.
    eventually(lambda: is_still(lambda: len(events_of(scene)), 2))
    events = events_of(scene)
    if shown.condition is None or shown.event is None:
        assert not events
        return
    described = scene.jobs.access.kubectl("describe", "rlhf", NAME, *place[:2]).stdout
    assert all(len(re.findall(rf"\b{word}\b", described)) for word in shown.event[:2])
    assert shown.event[2].split(": ")[0] in described
    assert {shown.condition[2], shown.reason, shown.event[1]} == {cause.reason}
    # Each attempt's start is told, and all else once, in whatever words.
    told = Counter((each.type, each.reason) for each in events if each.reason != Reason.CREATED)
    started = Counter(each.message for each in events if each.reason == Reason.CREATED)
    assert {*told.values(), *started.values(), *(each.count for each in events)} == {1}, told
    warned = {each for each in told if each[0] == "Warning"}
    assert warned == {shown.event[:2]} - {("Normal", cause.reason)}, told


@pytest.mark.parametrize(
    ("stage", "condition", "tried"),
    [
        (staged_causes.webhook_down, "ChildrenReady", ("create", "/jobs")),
        (staged_causes.claim_missing, "ChildrenReady", ("get", "/persistentvolumeclaims/models")),
        (staged_causes.service_account, "Running", ("list", "/events")),
    ],
)
def test_a_refusal_that_lasts_is_told_once(
    scene: Scene, stage: Callable[[Scene], None], condition: str, tried: tuple[str, str]
) -> None:
    stage(scene)

    def found() -> dict[str, str]:
        told = scene.jobs.condition(NAME, condition)
        return told if told.get("reason") not in (None, "PodsPending") else {}

    def tries() -> int:
        """Requests of the operator that are refused, or that ask who refuses."""
        verb, path = tried
        place = f"/namespaces/{scene.jobs.namespace}{path}"
        return sum(
            event["userAgent"].startswith("rlhf-operator")
            and event["verb"] == verb
            and event["requestURI"].partition("?")[0].endswith(place)
            for event in scene.own.audit_events()
        )

    first, begun = eventually(found), tries()
    eventually(lambda: tries() >= begun + 2, seconds=180)
    assert found() == first
    told = [each for each in events_of(scene) if each.reason == first["reason"]]
    assert [each.count for each in told] == [1]
