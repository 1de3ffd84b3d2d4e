"""What kopf watches, and how: every event goes to the store, and kopf itself writes nothing.

Called by `watches`, in a thread of its own for each namespace.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf

from rlhf_api.names import GROUP, PLURAL, VERSION
from rlhf_operator.kube import MANAGED, PAGE
from rlhf_operator.store import Kind

RESOURCES = {
    Kind.RLHFJOB: (GROUP, VERSION, PLURAL),
    Kind.JOB: ("batch", "v1", "jobs"),
    Kind.POD: ("", "v1", "pods"),
}
WATCH_SECONDS = 300
IDLE_SECONDS = 1.0
"""Longer than the events of one change are apart."""

Raw = dict[str, Any]
Happened = Callable[[Kind, str | None, Raw], None]
Listed = Callable[[Kind], None]


def registry(happened: Happened, listed: Listed) -> kopf.OperatorRegistry:
    """The handlers.

    Args:
        happened: told kind, type (ADDED, MODIFIED, DELETED; None for one of a listing) and object
            of every event.
        listed: told the kind of every listing that kopf has begun a watch with: it hides where a
            listing ends, begins anew in silence, and misses what was deleted meanwhile.
    """
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        return None if found is None else _session(found, listed)

    for kind, (group, version, plural) in RESOURCES.items():
        kopf.on.event(group, version, plural, registry=handlers, id=plural)(
            _handler(kind, happened)
        )
    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """Settings under which kopf writes nothing, and watches nothing but what is ours."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDifferences()
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.chunk_size = PAGE
    # Until then each object's worker keeps the last event whole.
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.networking.request_timeout = 30
    # What fails for longer ends the watch, and `watches` begins it anew.
    settings.networking.error_backoffs = (0.5, 1.0)
    for kind in (Kind.JOB, Kind.POD):
        group, _, plural = RESOURCES[kind]
        settings.watching.label_selectors[group, plural] = MANAGED
    return settings


class _NoDifferences(kopf.DiffBaseStorage):
    """kopf would copy each object of each event to compare it with the one before."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("kopf keeps nothing in objects")


def _handler(kind: Kind, happened: Happened) -> Callable[..., Any]:
    async def handle(*, event: Any, **_: Any) -> None:
        happened(kind, event["type"], event["object"])

    return handle


def _session(found: kopf.ConnectionInfo, listed: Listed) -> kopf.AiohttpSession:
    """A session as kopf would make it, which tells of listings."""
    kinds = {plural: kind for kind, (_, _, plural) in RESOURCES.items()}

    async def ended(
        _session: aiohttp.ClientSession,
        _context: SimpleNamespace,
        done: aiohttp.TraceRequestEndParams,
    ) -> None:
        kind = kinds.get(done.url.name)
        watches = "watch" in done.url.query
        if kind is not None and not watches and done.response.status == 200:
            listed(kind)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(ended)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context()),
        headers=found.as_http_headers(),
        proxy=found.proxy_url,
        trust_env=found.trust_env,
        trace_configs=[trace],
    )
    return kopf.AiohttpSession(
        server=found.server,
        aiohttp_session=session,
        default_namespace=found.default_namespace,
        priority=found.priority,
        expiration=found.expiration,
    )
