"""What kopf watches: every change of a job or of its children puts the job's key into the queue.

Nothing is read from the events but whose they are: what is there is asked of the API server.
"""

from collections.abc import Callable
from typing import Any

import kopf

from rlhf_api.names import GROUP, PLURAL, VERSION, Label
from rlhf_operator.kube import MANAGED
from rlhf_operator.work_queue import Key

CHILDREN = (("batch", "v1", "jobs"), ("", "v1", "pods"))

Changed = Callable[[Key], None]
Seen = Callable[[str, str], None]


def registry(changed: Changed, seen: Seen) -> kopf.OperatorRegistry:
    """The handlers.

    Args:
        changed: told the key of every job that changed, or whose child did.
        seen: told uid and resource version of every job that the watch shows.
    """
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def on_job(*, namespace: str | None, name: str, meta: kopf.Meta, **_: Any) -> None:
        seen(meta["uid"], meta["resourceVersion"])
        changed((namespace or "", name))

    async def on_child(*, namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        if name := labels.get(Label.JOB):
            changed((namespace or "", name))

    for group, version, plural in CHILDREN:
        kopf.on.event(group, version, plural, registry=handlers, id=plural)(on_child)
    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """Settings under which kopf writes nothing, and watches nothing but what is ours."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.networking.request_timeout = 30
    for group, _, plural in CHILDREN:
        settings.watching.label_selectors[group, plural] = MANAGED
    return settings
