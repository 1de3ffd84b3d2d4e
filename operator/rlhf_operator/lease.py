"""What a replica makes of the Lease that it sees: take it, renew it or wait. Pure.

Called by `leader`, which reads and writes it. Clocks of two machines are never compared: a
candidate counts the time since it saw the Lease change.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

Raw = dict[str, Any]

LEASE_SECONDS = 12
RETRY_SECONDS = 2


@dataclass(frozen=True)
class Sight:
    """A Lease as it was seen, and what counts of it.

    Attributes:
        lease: the object; None while there is none.
        record: its spec, or that of the Lease before it, which still counts for its time.
        uid: of the Lease that the record is from.
        since: when the record was seen to change, by the local monotonic clock.
    """

    lease: Raw | None
    record: Raw
    uid: str
    since: float

    @classmethod
    def of(cls, lease: Raw | None, now: float) -> Self:
        """A Lease of whose past nothing is known."""
        return cls(lease, _spec(lease), uid_of(lease), now)


@dataclass(frozen=True)
class Take:
    """Nobody holds the Lease any more."""


@dataclass(frozen=True)
class Renew:
    """The Lease is ours."""


@dataclass(frozen=True)
class Wait:
    """Another replica holds the Lease; look again after `seconds`."""

    seconds: float


def see(last: Sight | None, lease: Raw | None, now: float) -> Sight:
    """What a Lease read at `now` changes.

    A Lease that is deleted, or made anew and held by nobody, ends no leadership: its holder may not
    know of it yet, and makes it again.
    """
    found = Sight.of(lease, now)
    if last is None:
        return found
    vanished = found.uid != last.uid and not found.record.get("holderIdentity")
    if vanished or found.record == last.record:
        return replace(last, lease=lease)
    return found


def decide(sight: Sight, now: float, identity: str) -> Take | Renew | Wait:
    """What a replica does about the Lease that it sees."""
    holder = sight.record.get("holderIdentity")
    if holder == identity:
        return Renew()
    left = sight.since + (sight.record.get("leaseDurationSeconds") or LEASE_SECONDS) - now
    if not holder or left <= 0:
        return Take()
    return Wait(min(left, RETRY_SECONDS))


def held(sight: Sight, identity: str, owner: Raw | None, now: datetime) -> Raw:
    """The Lease as `identity` writes it, to take it or to renew it."""
    before = _spec(sight.lease) or sight.record
    ours = before.get("holderIdentity") == identity
    moment = _micro_time(now)
    transitions = before.get("leaseTransitions") or 0
    spec = before | {
        "holderIdentity": identity,
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": (before.get("acquireTime") if ours else None) or moment,
        "renewTime": moment,
        "leaseTransitions": transitions + (bool(before) and not ours),
    }
    metadata: Raw = dict((sight.lease or {}).get("metadata") or {})
    if owner:
        others = [
            each
            for each in owners_of(sight.lease)
            if (each["kind"], each["name"]) != (owner["kind"], owner["name"])
        ]
        metadata["ownerReferences"] = [*others, owner]
    return {"metadata": metadata, "spec": spec}


def given_back(sight: Sight, identity: str, now: datetime) -> Raw:
    """The Lease as `identity`, which holds it, writes it for another to take it at once."""
    lease = held(sight, identity, None, now)
    # The shortest time there is, for readers that count even a Lease of nobody.
    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
    return lease


def owner_reference(deployment: str, uid: str) -> Raw:
    """Lets the garbage collector remove the Lease with our own Deployment."""
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment, "uid": uid}


def _spec(lease: Raw | None) -> Raw:
    return (lease or {}).get("spec") or {}


def uid_of(found: Raw | None) -> str:
    """The uid of an object; empty if there is none."""
    return str(((found or {}).get("metadata") or {}).get("uid", ""))


def owners_of(lease: Raw | None) -> list[Raw]:
    """The objects with which the Lease is to be deleted."""
    return ((lease or {}).get("metadata") or {}).get("ownerReferences") or []


def _micro_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
