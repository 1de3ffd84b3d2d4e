"""What a replica makes of the Lease that it sees, by a clock that the tests move."""

from datetime import UTC, datetime
from typing import Any

import pytest

from rlhf_operator import leader, watches
from rlhf_operator.lease import (
    LEASE_SECONDS,
    RETRY_SECONDS,
    Renew,
    Sight,
    Take,
    Wait,
    decide,
    held,
    see,
)

Raw = dict[str, Any]
NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
MOMENT = "2026-01-02T03:04:05.000678Z"


def lease(holder: str | None = "other", renewed: str = "1", uid: str = "u", **spec: Any) -> Raw:
    """A Lease as the API server gives it; without a spec if `holder` is None."""
    record = {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 12} | spec
    metadata = {"name": "lease", "uid": uid, "resourceVersion": "7"}
    return {"kind": "Lease", "metadata": metadata, "spec": {} if holder is None else record}


def seen(*steps: tuple[float, Raw | None]) -> Sight:
    """What is left after looking at these times."""
    sight = None
    for now, found in steps:
        sight = see(sight, found, now)
    assert sight is not None
    return sight


@pytest.mark.parametrize(
    ("found", "now", "expected"),
    [
        pytest.param(None, 0, Take(), id="no Lease"),
        pytest.param(lease(None), 0, Take(), id="a Lease that nobody ever held"),
        pytest.param(lease("", leaseDurationSeconds=1), 0, Take(), id="a Lease given back"),
        pytest.param(lease("me"), 0, Renew(), id="ours"),
        pytest.param(lease("me"), 99, Renew(), id="ours, and nobody else took it"),
        pytest.param(lease(), 0, Wait(2), id="another's"),
        pytest.param(lease(), 11.5, Wait(0.5), id="another's, soon over"),
        pytest.param(lease(), 12, Take(), id="another's, over"),
        pytest.param(lease(leaseDurationSeconds=30), 12, Wait(2), id="its own duration counts"),
        pytest.param(lease(leaseDurationSeconds=None), 11, Wait(1), id="no duration: ours counts"),
        pytest.param(lease(renewed="1970-01-01T00:00:00Z"), 1, Wait(2), id="no wall clock counts"),
    ],
)
def test_what_is_done_about_a_lease_that_was_seen_at_zero(
    found: Raw | None, now: float, expected: Take | Renew | Wait
) -> None:
    assert decide(seen((0, found)), now, "me") == expected


@pytest.mark.parametrize(
    ("steps", "free_at"),
    [
        pytest.param([(0, lease()), (5, lease(renewed="2"))], 17, id="each renewal counts anew"),
        pytest.param([(0, lease()), (5, lease())], 12, id="a look changes nothing"),
        pytest.param(
            [(0, lease()), (5, lease(uid="v"))], 12, id="the record counts, not the object"
        ),
        pytest.param([(0, lease()), (5, None), (6, None)], 12, id="a deleted Lease"),
        pytest.param(
            [(0, lease()), (5, None), (6, lease(None, uid="v")), (7, lease(None, uid="v"))],
            12,
            id="deleted, and made anew without a holder",
        ),
        pytest.param(
            [(0, lease()), (5, None), (6, lease("third", uid="v"))], 18, id="made anew by a third"
        ),
        pytest.param([(0, lease()), (5, lease(""))], 5, id="given back"),
    ],
)
def test_until_when_a_candidate_waits(
    steps: list[tuple[float, Raw | None]], free_at: float
) -> None:
    sight = seen(*steps)
    assert isinstance(decide(sight, free_at - 0.01, "me"), Wait) or free_at == steps[-1][0]
    assert decide(sight, free_at, "me") == Take()


@pytest.mark.parametrize("found", [None, lease(None, uid="v")], ids=["deleted", "made anew"])
def test_a_leader_makes_its_lost_lease_again(found: Raw | None) -> None:
    assert decide(seen((0, lease("me")), (1, found)), 1, "me") == Renew()


@pytest.mark.parametrize("found", [lease("third"), lease("third", uid="v"), lease("")])
def test_a_leader_yields_to_whoever_changed_the_holder(found: Raw) -> None:
    assert decide(seen((0, lease("me")), (1, found)), 1, "me") != Renew()


def test_a_leader_has_stopped_before_any_candidate_may_take_over() -> None:
    # Both count from a time that the leader knows not to be later than the candidate's.
    assert leader.RENEW_SECONDS + leader.STOP_SECONDS < LEASE_SECONDS
    # All else ends at once, as fast as the machine is.
    assert watches.STOP_SECONDS <= leader.STOP_SECONDS / 2
    # A renewal that hangs is tried once more, on another connection.
    assert RETRY_SECONDS + 2 * leader.REQUEST_SECONDS <= leader.RENEW_SECONDS


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, {"acquireTime": MOMENT, "leaseTransitions": 0}),
        (lease(None), {"acquireTime": MOMENT, "leaseTransitions": 0}),
        (
            lease(acquireTime="then", leaseTransitions=4),
            {"acquireTime": MOMENT, "leaseTransitions": 5},
        ),
        (lease("", leaseTransitions=4), {"acquireTime": MOMENT, "leaseTransitions": 5}),
        (
            lease("me", acquireTime="then", leaseTransitions=4),
            {"acquireTime": "then", "leaseTransitions": 4},
        ),
    ],
    ids=["none", "empty", "another's", "given back", "ours"],
)
def test_what_is_written(found: Raw | None, expected: Raw) -> None:
    ours = {"holderIdentity": "me", "leaseDurationSeconds": 12, "renewTime": MOMENT}
    written = held(seen((0, found)), "me", None, NOW)
    assert written["spec"] == ours | expected
    assert written["metadata"] == (found or {}).get("metadata", {})


def test_the_owner_replaces_an_older_one_and_no_other() -> None:
    ours = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "operator", "uid": "new"}
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "operator", "uid": "c"}
    found = lease("me")
    found["metadata"]["ownerReferences"] = [ours | {"uid": "old"}, other]
    written = held(seen((0, found)), "me", ours, NOW)
    assert written["metadata"]["ownerReferences"] == [other, ours]
    assert written["metadata"]["resourceVersion"] == "7"
    assert found["metadata"]["ownerReferences"][0]["uid"] == "old"
