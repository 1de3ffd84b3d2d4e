"""The API server's audit log: who asked for what, to the microsecond. Read by `parts`.

The times are the server's own, so that the client that measures adds nothing to them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rlhf_api.names import PLURAL
from rlhf_api.v1alpha1 import RLHFJobStatus
from rlhf_operator.planning import pace

Raw = dict[str, Any]

READS = frozenset({"get", "list", "watch"})
"""A watch is logged when it ends."""
_NOT_COUNTED = frozenset({"leases", "events"})


def status_rule(namespace: str) -> Raw:
    """Rule of an audit policy that keeps the status that each write to an RLHFJob leaves."""
    resource = {"group": "rlhf.dev", "resources": [f"{PLURAL}/status"]}
    return {
        "level": "RequestResponse",
        "verbs": ["patch", "update"],
        "namespaces": [namespace],
        "resources": [resource],
        "omitManagedFields": True,
    }


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered.

    Attributes:
        resource: plural, with the subresource after a slash.
        code: HTTP status of the answer.
        received: when it came, in seconds since the epoch.
        answered: when its answer was complete.
        status: the status that it left; None where the audit policy keeps no bodies.
    """

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    received: float
    answered: float
    status: Raw | None = None

    @classmethod
    def from_line(cls, line: str) -> "Request":
        """Read one line of the log."""
        event = json.loads(line)
        target = event.get("objectRef") or {}
        parts = (target.get("resource", ""), target.get("subresource", ""))
        return cls(
            user=event["user"].get("username", ""),
            verb=event["verb"],
            resource="/".join(filter(None, parts)),
            namespace=target.get("namespace", ""),
            name=target.get("name", ""),
            code=(event.get("responseStatus") or {}).get("code", 0),
            received=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
            answered=datetime.fromisoformat(event["stageTimestamp"]).timestamp(),
            status=(event.get("responseObject") or {}).get("status"),
        )

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.verb in READS

    @property
    def kind(self) -> str:
        """Verb and resource, as they are counted."""
        return f"{self.verb} {self.resource}"

    def creates(self, resource: str) -> bool:
        """Whether it made an object of `resource`."""
        return (self.verb, self.resource, self.code) == ("create", resource, 201)


@dataclass
class AuditLog:
    """The log of a running API server, followed through its rotation.

    Attributes:
        requests: all that was read so far, in the order of their answers.
    """

    path: Path
    requests: list[Request] = field(default_factory=list)
    _file: TextIO | None = None
    _rest: str = ""

    def read(self) -> list[Request]:
        """Read on to the end; gives all requests so far."""
        if self._file is None:
            self._file = self.path.open()
        self._read_file(self._file)
        # The server renames a log of 100 MB and begins a new one.
        if self.path.stat().st_ino != Path(f"/dev/fd/{self._file.fileno()}").stat().st_ino:
            self._read_file(self._file)
            self.close()
            self._file = self.path.open()
            self._read_file(self._file)
        return self.requests

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _read_file(self, file: TextIO) -> None:
        *lines, self._rest = (self._rest + file.read()).split("\n")
        self.requests += map(Request.from_line, lines)


def within(requests: Iterable[Request], since: float, until: float = float("inf")) -> list[Request]:
    """The requests that came in that time."""
    return [request for request in requests if since <= request.received < until]


def is_counted_write(request: Request) -> bool:
    """Whether it writes something other than a Lease or an Event, refused or not."""
    return not request.is_read and request.resource.split("/")[0] not in _NOT_COUNTED


def seconds_to_child(requests: Iterable[Request], namespace: str) -> dict[str, float]:
    """By RLHFJob, the time from the answer to its create to the answer to its first child's."""
    applied: dict[str, float] = {}
    child: dict[str, float] = {}
    for request in requests:
        if request.namespace != namespace:
            continue
        if request.creates(PLURAL):
            applied[request.name] = request.answered
        elif request.creates("jobs"):
            job = job_of_child(request.name)
            child[job] = min(request.answered, child.get(job, request.answered))
    return {job: child[job] - at for job, at in applied.items() if job in child}


def job_of_child(name: str) -> str:
    """Name of the RLHFJob whose batch Job `<job>-<stage>-<attempt>` is called `name`."""
    return name.rsplit("-", 2)[0]


def count_by_kind(requests: Iterable[Request]) -> Counter[str]:
    """How many requests of each verb and resource."""
    return Counter(request.kind for request in requests)


def without_progress(requests: Iterable[Request]) -> Iterator[Request]:
    """The requests but those that wrote only how far a job is, as the operator draws that line."""
    last: dict[tuple[str, str], Raw] = {}
    for request in requests:
        if request.status is None or request.code != 200:
            yield request
            continue
        status = RLHFJobStatus.model_validate_json(json.dumps(request.status))
        key, said = (request.namespace, request.name), pace.without_progress(status)
        if last.get(key) != said:
            yield request
        last[key] = said
