"""The only module that talks to the API server: raw objects over one session of `kubernetes.aio`.

Called by all that ask or write: `act`, `absences`, `reconcile`, `watches`, `recorder`, `leader`,
`serve`. Nothing is decided or repeated here.
"""

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiolimiter import AsyncLimiter
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from rlhf_api.errors import ConfigError, RLHFError
from rlhf_api.names import API_VERSION, GROUP, OPERATOR_NAME, PLURAL, VERSION, Label
from rlhf_api.v1alpha1.bounds import bounded_text
from rlhf_operator.metrics import API_REQUESTS

Raw = dict[str, Any]

REQUEST_SECONDS = 10
PAGE = 500
MAX_EVENT_LENGTH = 1024
"""Characters of an Event's message; the API server refuses more in newer forms of Events."""
SPARE_REQUESTS_PER_SECOND = 50.0
"""For what nobody waits for, twice: for progress and why something waits, and for Events."""
MANAGED = f"{Label.MANAGED_BY}={OPERATOR_NAME}"

_OTHER_UID = re.compile(r"UID in (?:the )?precondition")
"""What is said where another object has the name by now."""


class ApiError(RLHFError):
    """A request that the API server refused or did not answer.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        body: the Status object; empty when there was none.
        retry_after: seconds that the server asks us to wait, if it does.
    """

    def __init__(self, request: str, status: int, body: Raw, retry_after: float | None = None):
        self.status, self.body, self.retry_after = status, body, retry_after
        self.message = str(
            body.get("message") or f"{request} was answered by {status or 'nothing'}"
        )
        super().__init__(self.message)

    def faults(self) -> tuple[Raw, ...]:
        """What the Status object finds fault with: `field` of the object, and `message`."""
        causes = (self.body.get("details") or {}).get("causes") or ()
        return tuple(cause for cause in causes if cause.get("field"))

    def says_gone(self) -> bool:
        """Whether the API server says of an object, named by its uid or not, that it is not there.

        A webhook, or what stands in between, may answer with the same HTTP statuses.
        """
        reason = self.body.get("reason")
        if 'admission webhook "' in self.message:
            return False
        if self.status == 409:
            return reason == "Conflict" and _OTHER_UID.search(self.message) is not None
        return self.status == 404 and reason == "NotFound"


class OutdatedError(ApiError):
    """A write to an object that somebody else has changed, or deleted, since it was read."""


@dataclass(frozen=True)
class Listing:
    """Objects of a collection at one moment.

    Attributes:
        items: the objects.
        version: resource version of that moment.
    """

    items: list[Raw]
    version: int


class Kube:
    """A session with the API server."""

    def __init__(self, client: ApiClient, requests_per_second: float) -> None:
        self.client = client
        # A bucket of half a second lets a job's few calls through at once.
        burst = max(1.0, requests_per_second / 2)
        self._limit = AsyncLimiter(burst, burst / requests_per_second)
        self._spare_limit = AsyncLimiter(SPARE_REQUESTS_PER_SECOND, 1.0)
        self._events_limit = AsyncLimiter(SPARE_REQUESTS_PER_SECOND, 1.0)

    @classmethod
    @asynccontextmanager
    async def connect(cls, requests_per_second: float) -> AsyncIterator[Self]:
        """A session by KUBECONFIG, or as the pod's service account.

        Raises:
            ConfigError: there is neither.
        """
        configuration = Configuration()
        await _find_server(configuration)
        # To look for proxies in the environment takes two turns of a thread, in every request.
        trusts = _is_behind_proxy(str(configuration.host))
        configuration.client_session_kwargs = {"trust_env": trusts}
        async with ApiClient(configuration) as client:
            yield cls(client, requests_per_second)

    def has_spare(self) -> bool:
        """Whether a spare request would be sent at once."""
        return self._spare_limit.has_capacity()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
        timeout: float | None = None,
        limit: AsyncLimiter | None = None,
    ) -> Raw:
        """One request.

        Args:
            method: HTTP method.
            path: with a leading slash.
            body: plain JSON values.
            query: parameters of the query.
            content_type: of the body.
            timeout: seconds to wait for the answer, once the request is sent.
            limit: the budget that the request takes from; the workers' when None.

        Raises:
            ApiError: refused, or not answered in time.
        """
        headers = {"Accept": "application/json", "Content-Type": content_type}
        headers["User-Agent"] = OPERATOR_NAME
        url = f"{self.client.configuration.host}{path}"
        if query:
            url += f"?{urlencode(query)}"
        async with limit or self._limit:
            try:
                await self.client.update_params_for_auth(
                    headers, [], ["BearerToken"], path, method, body
                )
                response = await self.client.call_api(
                    method, url, headers, body, _request_timeout=timeout or REQUEST_SECONDS
                )
                text = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                API_REQUESTS.labels(method, "none").inc()
                cause = f"{method} {path}: {str(error) or type(error).__name__}"
                raise ApiError(path, 0, {"message": cause}) from error
        API_REQUESTS.labels(method, str(response.status)).inc()
        try:
            answer = json.loads(text or "{}")
        except ValueError:  # A proxy answers in HTML.
            answer = None
        found = answer if isinstance(answer, dict) else {}
        if response.status >= 300:
            wait = response.headers.get("Retry-After", "")
            seconds = float(wait) if wait.isdigit() else None
            raise ApiError(f"{method} {path}", response.status, found, seconds)
        if not isinstance(answer, dict):
            raise ApiError(path, 0, {"message": f"{method} {path}: the answer is no JSON object"})
        return found

    async def find(self, path: str) -> Raw | None:
        """The object at `path`; None if there is none.

        Raises:
            ApiError: refused, not answered in time, or answered for the API server by another.
        """
        try:
            return await self.request("GET", path)
        except ApiError as error:
            if error.says_gone():
                return None
            raise

    async def list(
        self,
        path: str,
        selector: str = "",
        fields: str = "",
        *,
        spare: bool = False,
        trim: Callable[[Raw], Raw] | None = None,
    ) -> Listing:
        """All objects of a collection that match the label selector and the field selector.

        Args:
            path: of the collection.
            selector: of labels; all when empty.
            fields: selector of fields; all when empty.
            spare: whether each page takes from the budget of requests that nobody waits for.
            trim: gives what is kept of an object; only one page of whole objects is there at once.

        Raises:
            ApiError: refused, not answered in time, or answered by something that is no list.
        """
        query: dict[str, str | int] = {"limit": PAGE}
        if selector:
            query["labelSelector"] = selector
        if fields:
            query["fieldSelector"] = fields
        limit = self._spare_limit if spare else None
        found: list[Raw] = []
        while True:
            page = await self.request("GET", path, query=query, limit=limit)
            if not str(page.get("kind")).endswith("List"):
                # Whatever stands in between answers for the API server; nothing is gone for that.
                raise ApiError(path, 0, {"message": f"GET {path}: the answer is no list"})
            items = page.get("items") or []
            found += map(trim, items) if trim is not None else items
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(found, int(metadata.get("resourceVersion") or 0))
            query["continue"] = metadata["continue"]

    async def write_status(self, raw: Raw, status: Raw, *, spare: bool = False) -> Raw:
        """Replace a job's status, if the job is still the one that was read (else 409)."""
        metadata = raw["metadata"]
        patch = [
            {
                "op": "replace",
                "path": "/metadata/resourceVersion",
                "value": metadata["resourceVersion"],
            },
            {"op": "add", "path": "/status", "value": status},
        ]
        path = f"{job_path(metadata['namespace'], metadata['name'])}/status"
        content_type = "application/json-patch+json"
        limit = self._spare_limit if spare else None
        return await self.request("PATCH", path, patch, content_type=content_type, limit=limit)

    async def tell(self, raw: Raw, kind: str, reason: str, message: str, now: str) -> None:
        """Make an Event about a job."""
        metadata = raw["metadata"]
        event = {
            "metadata": {"generateName": f"{metadata['name']}."},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": raw["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": bounded_text(message, MAX_EVENT_LENGTH),
            "source": {"component": OPERATOR_NAME},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        # A long row of Events must keep neither a start nor progress waiting.
        path = core_path(metadata["namespace"], "events")
        await self.request("POST", path, event, limit=self._events_limit)


async def _find_server(configuration: Configuration) -> None:
    """Fill in the API server and who we are for it."""
    places = config.KUBE_CONFIG_DEFAULT_LOCATION
    if any(Path(each).expanduser().is_file() for each in places.split(os.pathsep)):
        await config.load_kube_config(client_configuration=configuration)
        return
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigError(
            f"no API server is known: there is no kubeconfig {places!r}, and this is no pod with a "
            "service account; set KUBECONFIG to a kubeconfig, or run the operator in a pod"
        ) from error


def _is_behind_proxy(server: str) -> bool:
    """Whether the environment names a proxy for requests to that URL."""
    parts = urlsplit(server)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def core_path(namespace: str, plural: str, name: str = "") -> str:
    """Path of an object of the core group, of those of a namespace, or of all."""
    return _path("/api/v1", namespace, plural, name)


def batch_path(namespace: str, name: str = "") -> str:
    """Path of a batch/v1 Job, of those of a namespace, or of all."""
    return _path("/apis/batch/v1", namespace, "jobs", name)


def job_path(namespace: str = "", name: str = "") -> str:
    """Path of an RLHFJob, of those of a namespace, or of all."""
    return _path(f"/apis/{GROUP}/{VERSION}", namespace, PLURAL, name)


def _path(group: str, namespace: str, plural: str, name: str) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{scope}/{plural}" + (f"/{name}" if name else "")
