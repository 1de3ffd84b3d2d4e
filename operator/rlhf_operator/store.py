"""What is known of jobs and their children: filled by LISTs, kept fresh by watches and own writes.

Called by `watches`, `reconcile`, `act` and `absences`. Pure: nothing is asked for. The newer
resource version of a uid wins, whoever brings it, so that the order of arrival does not matter.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlhf_api.names import PLURAL
from rlhf_operator.fields import claimed, has_ended, is_watched, owner_uid, trimmed
from rlhf_operator.work_queue import Key

Raw = dict[str, Any]

REMEMBER_SECONDS = 600.0
"""How long a deleted uid is known; whatever speaks of it as it was before is late."""


class Kind(StrEnum):
    """What the store holds, by the plural that stands in paths."""

    RLHFJOB = PLURAL
    JOB = "jobs"
    POD = "pods"


@dataclass(frozen=True)
class Gang:
    """A batch/v1 Job with its Pods.

    Attributes:
        job: the Job.
        pods: its Pods, in any order; those too that ended before they were deleted.
    """

    job: Raw
    pods: tuple[Raw, ...]


class Collection:
    """Objects of one kind: the newest version of each, found by uid, owner and claimed labels."""

    def __init__(self, kind: Kind, clock: Callable[[], float]) -> None:
        self._kind, self._clock = kind, clock
        self._objects: dict[str, Raw] = {}
        self._by_owner: dict[str, dict[str, None]] = {}
        self._by_claim: dict[str, dict[str, None]] = {}
        # When each was removed, and the version at which it was not there.
        self._deleted: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def find(self, uid: str) -> Raw | None:
        """The object with that uid; None if it is not there."""
        return self._objects.get(uid)

    def all(self) -> list[Raw]:
        """Every object."""
        return list(self._objects.values())

    def owned_by(self, uid: str) -> list[Raw]:
        """The objects that the one with `uid` controls."""
        return [self._objects[child] for child in self._by_owner.get(uid, ())]

    def claiming(self, job: str) -> list[Raw]:
        """The objects for which `claimed` gives this job."""
        return [self._objects[child] for child in self._by_claim.get(job, ())]

    def put(self, raw: Raw) -> bool:
        """Take in an object; False if it tells nothing new."""
        uid = raw["metadata"]["uid"]
        known = self._objects.get(uid)
        _, gone_at = self._deleted.get(uid, (0.0, -1))
        if max(gone_at, -1 if known is None else version_of(known)) >= version_of(raw):
            return False
        self._deleted.pop(uid, None)
        if known is not None and self._places(known) != self._places(raw):
            self._disown(known)
        self._objects[uid] = trimmed(self._kind, raw)
        for index, key in zip(self._indexes, self._places(raw), strict=True):
            if key is not None:
                index.setdefault(key, {})[uid] = None
        return True

    def put_unwatched(self, raw: Raw) -> None:
        """Take in an object that was found by its name, though a watch has told that it is gone."""
        self._deleted.pop(raw["metadata"]["uid"], None)
        self.put(raw)

    def remove(self, uid: str, version: int) -> Raw | None:
        """Forget an object that is not there at a resource version; gives it, if it was known.

        One that lost the label by which it is watched is told as deleted, too, and may get it back.
        """
        now = self._clock()
        since, at = self._deleted.get(uid, (now, version))
        self._deleted[uid] = since, max(at, version)
        while self._deleted and now - next(iter(self._deleted.values()))[0] > REMEMBER_SECONDS:
            self._deleted.popitem(last=False)
        found = self._objects.pop(uid, None)
        if found is not None:
            self._disown(found)
        return found

    def replace(self, scope: Iterable[Raw], items: Iterable[Raw], version: int) -> list[Raw]:
        """Take in a LIST.

        Args:
            scope: the known objects that the LIST would show if they were still there.
            items: what it shows.
            version: the resource version at which it was made.

        Returns:
            What changed: objects that are new or newer, and those that are gone.
        """
        listed = {raw["metadata"]["uid"]: raw for raw in items}
        gone = [
            raw
            for raw in scope
            if raw["metadata"]["uid"] not in listed and version_of(raw) <= version
        ]
        for raw in gone:
            self.remove(raw["metadata"]["uid"], version)
        return [raw for raw in listed.values() if self.put(raw)] + gone

    def drop(self, raw: Raw) -> None:
        """Forget an object that may be seen again."""
        uid = raw["metadata"]["uid"]
        self.remove(uid, version_of(raw))
        del self._deleted[uid]

    @property
    def _indexes(self) -> tuple[dict[str, dict[str, None]], ...]:
        return self._by_owner, self._by_claim

    def _places(self, raw: Raw) -> tuple[str | None, ...]:
        """Where an object is found in each index; None where it is not."""
        return owner_uid(raw), claimed(self._kind, raw)

    def _disown(self, raw: Raw) -> None:
        """Let an object be found by its owner, and by its labels, no more."""
        for index, key in zip(self._indexes, self._places(raw), strict=True):
            if key is not None:
                children = index[key]
                del children[raw["metadata"]["uid"]]
                if not children:
                    del index[key]


class Store:
    """RLHFJobs with, by owner uid, their Jobs and those Jobs' Pods."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._of = {kind: Collection(kind, clock) for kind in Kind}
        self._uids: dict[Key, str] = {}
        self._own: dict[str, int] = {}
        # What a pod said at its end is often deleted with it, a moment later.
        self._ended: dict[str, dict[str, Raw]] = {}

    def put_own(self, kind: Kind, raw: Raw) -> None:
        """Take in the answer to a write of ours, which is no news."""
        if kind is Kind.RLHFJOB:
            uid = raw["metadata"]["uid"]
            if self._of[kind].find(uid) is None:
                # Deleted or forgotten meanwhile, and what belongs to it is, too.
                return
            self._own[uid] = version_of(raw)
        self.put(kind, raw)

    def put_read(self, kind: Kind, raw: Raw) -> None:
        """Take in a child that was read by its name: one that no watch shows is there all the same.

        It must be read again whenever something follows from it, since its end is not told either.
        """
        if is_watched(raw):
            self.put(kind, raw)
        else:
            self._of[kind].put_unwatched(raw)

    def is_own(self, raw: Raw) -> bool:
        """Whether a version of an RLHFJob is the one that we wrote last."""
        return self._own.get(raw["metadata"]["uid"]) == version_of(raw)

    def put(self, kind: Kind, raw: Raw) -> Key | None:
        """Take in an object; gives the key of the job that it is news of, if it is."""
        if not self._of[kind].put(raw):
            return None
        if kind is Kind.RLHFJOB:
            self._name(raw)
        return self._job_key(kind, raw)

    def remove(self, kind: Kind, raw: Raw) -> Key | None:
        """An object is there no more as of this version; the key of the job that it is news of."""
        found = self._of[kind].remove(raw["metadata"]["uid"], version_of(raw))
        if found is None and kind is not Kind.POD:
            return None
        # A LIST may have told before that a pod is gone, and only this tells how it ended.
        key = self._job_key(kind, found or raw)
        # The last version comes with the news of its deletion.
        self._let_go(kind, trimmed(kind, raw) if found is None or kind is Kind.POD else found)
        return key

    def replace(self, kind: Kind, namespace: str, items: Iterable[Raw], version: int) -> set[Key]:
        """Take in a LIST of a namespace, or of all if empty; gives the keys that it is news of."""
        scope = [
            raw
            for raw in self._of[kind].all()
            if (not namespace or raw["metadata"]["namespace"] == namespace)
            # What has lost the label of ours is in no LIST.
            and (kind is Kind.RLHFJOB or is_watched(raw))
        ]
        return self._replaced(kind, self._of[kind].replace(scope, items, version))

    def replace_pods(self, job_uid: str, items: Iterable[Raw], version: int) -> None:
        """Take in a LIST of the Pods of one Job, those among them that no watch shows."""
        pods, listed = self._of[Kind.POD], list(items)
        for raw in listed:
            if not is_watched(raw):
                pods.put_unwatched(raw)
        self._replaced(Kind.POD, pods.replace(pods.owned_by(job_uid), listed, version))

    def forget(self, namespace: str) -> list[Key]:
        """Forget all of a namespace that is not watched; gives the keys of its jobs.

        What comes back is taken in again: that we see nothing does not mean that it is deleted.
        """
        keys = self.keys(namespace)
        for kind in Kind:
            for raw in self._of[kind].all():
                if not namespace or raw["metadata"]["namespace"] == namespace:
                    self._of[kind].drop(raw)
                    self._ended.pop(raw["metadata"]["uid"], None)
                    self._own.pop(raw["metadata"]["uid"], None)
        for key in keys:
            del self._uids[key]
        return keys

    def job(self, key: Key) -> Raw | None:
        """The RLHFJob of that namespace and name."""
        uid = self._uids.get(key)
        return None if uid is None else self._of[Kind.RLHFJOB].find(uid)

    def jobs(self) -> list[Raw]:
        """Every RLHFJob."""
        return self._of[Kind.RLHFJOB].all()

    def keys(self, namespace: str = "") -> list[Key]:
        """Keys of all RLHFJobs, or of those of a namespace."""
        return [key for key in self._uids if not namespace or key[0] == namespace]

    def gangs(self, uid: str) -> list[Gang]:
        """The Jobs of the RLHFJob with `uid`, with their Pods."""
        return [self._gang(job) for job in self._of[Kind.JOB].owned_by(uid)]

    def claiming_gangs(self, uid: str) -> list[Gang]:
        """The Jobs that carry the uid of an RLHFJob and are not its own, with their Pods."""
        return [self._gang(job) for job in self._of[Kind.JOB].claiming(uid)]

    def strays(self, key: Key, uid: str) -> list[tuple[Kind, Raw]]:
        """The Jobs and Pods that carry the labels of an RLHFJob and are not its own.

        Pods of a Job that is known are left out: it is named itself, or its own.
        """
        namespace, name = key
        found = (
            (kind, raw)
            for kind in (Kind.JOB, Kind.POD)
            for claim in (uid, f"{namespace}/{name}")
            for raw in self._of[kind].claiming(claim)
        )
        return [
            (kind, raw)
            for kind, raw in found
            if raw["metadata"]["namespace"] == namespace
            and owner_uid(raw) != uid
            and self._of[Kind.JOB].find(owner_uid(raw) or "") is None
        ]

    def count(self, kind: Kind) -> int:
        """How many objects of a kind there are."""
        return len(self._of[kind])

    def _gang(self, job: Raw) -> Gang:
        uid = job["metadata"]["uid"]
        ended = self._ended.get(uid, {}).values()
        return Gang(job, (*self._of[Kind.POD].owned_by(uid), *ended))

    def _let_go(self, kind: Kind, raw: Raw) -> None:
        """Forget what belongs to an object that is gone."""
        uid, owner = raw["metadata"]["uid"], owner_uid(raw)
        if kind is Kind.RLHFJOB:
            self._unname(raw)
            self._own.pop(uid, None)
        elif kind is Kind.JOB:
            self._ended.pop(uid, None)
            # Of those that no watch shows nobody tells that they are gone.
            for pod in self._of[Kind.POD].owned_by(uid):
                if not is_watched(pod):
                    self._of[Kind.POD].remove(pod["metadata"]["uid"], version_of(pod))
        elif has_ended(raw) and self._of[Kind.JOB].find(owner or "") is not None:
            self._ended.setdefault(str(owner), {})[uid] = raw

    def _replaced(self, kind: Kind, changed: list[Raw]) -> set[Key]:
        keys = set()
        for raw in changed:
            keys.add(self._job_key(kind, raw))
            if self._of[kind].find(raw["metadata"]["uid"]) is None:
                self._let_go(kind, raw)
            elif kind is Kind.RLHFJOB:
                self._name(raw)
        return {key for key in keys if key is not None}

    def _name(self, raw: Raw) -> None:
        """Let the key stand for this job, unless a later one of the same name is known."""
        key, uid = key_of(raw), raw["metadata"]["uid"]
        other = self.job(key)
        if other is None or version_of(raw) >= version_of(other):
            self._uids[key] = uid
            if other is not None and other["metadata"]["uid"] != uid:
                self._of[Kind.RLHFJOB].remove(other["metadata"]["uid"], version_of(raw))
                self._own.pop(other["metadata"]["uid"], None)

    def _unname(self, raw: Raw) -> None:
        if self._uids.get(key_of(raw)) == raw["metadata"]["uid"]:
            del self._uids[key_of(raw)]

    def _job_key(self, kind: Kind, raw: Raw) -> Key | None:
        """The key of the RLHFJob that an object is of; None while that is not known."""
        if kind is Kind.RLHFJOB:
            return key_of(raw)
        owner = owner_uid(raw)
        job = self._of[Kind.JOB].find(owner or "") if kind is Kind.POD else None
        if job is not None:
            return self._job_key(Kind.JOB, job)
        found = self._of[Kind.RLHFJOB].find(owner or "") or self._claimed_job(kind, raw)
        return None if found is None else key_of(found)

    def _claimed_job(self, kind: Kind, raw: Raw) -> Raw | None:
        """The RLHFJob whose labels an object carries that is not its own."""
        claim = claimed(kind, raw) or ""
        namespace, _, name = claim.partition("/")
        return self.job((namespace, name)) if name else self._of[Kind.RLHFJOB].find(claim)


def key_of(raw: Raw) -> Key:
    """Namespace and name of an object."""
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


def version_of(raw: Raw) -> int:
    """The resource version, which grows with every write to an object."""
    return int(raw["metadata"]["resourceVersion"])
