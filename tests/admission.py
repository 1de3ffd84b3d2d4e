"""Webhooks on this machine and admission policies, for tests that need the API server to refuse, to
wait, or to change what it is given."""

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cluster.control_plane import ControlPlane, free_port
from cluster.kube_fixtures import Access
from kubernetes import client

Raw = dict[str, Any]
Verdict = Callable[[Raw], str | Raw | None]
"""What an object is refused with: a sentence, or a Status as a webhook may answer. None lets it,
and so does a patch."""


class Webhook:
    """Asked by the API server about every object of a kind that is made in a namespace.

    Attributes:
        asked: names of the objects, or what their names begin with, one for each question.
        name: of the webhook, which refusals tell.
    """

    def __init__(
        self,
        access: Access,
        own: ControlPlane,
        namespace: str,
        plural: str,
        operation: str = "CREATE",
    ) -> None:
        self._api = client.AdmissionregistrationV1Api(access.api)
        self._namespace, self._plural, self._operation = namespace, plural, operation
        self._authority = own.authority
        self._server: ThreadingHTTPServer | None = None
        self.is_registered = False
        self._kind = "validating"
        self.asked: list[str] = []
        self.name = f"{plural.replace('/', '.')}.{namespace}.test"

    def answer(self, verdict: Verdict, seconds: float = 0.0) -> Self:
        """Refuse with what `verdict` gives for an object, after so many seconds."""
        certificate, key = self._authority.issue("webhook", "webhook", hosts=("127.0.0.1",))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(verdict, seconds))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._register(self._server.server_address[1])
        return self

    def patch(self, *operations: Raw) -> Self:
        """Change every object by operations of a JSON patch, as a mutating webhook."""
        self._kind = "mutating"
        patch = base64.b64encode(json.dumps(operations).encode()).decode()
        return self.answer(lambda _: {"patchType": "JSONPatch", "patch": patch})

    def be_away(self) -> Self:
        """Register it, with nobody there who answers."""
        self._register(free_port())
        return self

    def die(self) -> None:
        """Leave the API server without an answer."""
        self._server.shutdown()
        self._server.server_close()

    def close(self) -> None:
        """Take the webhook back, unless that is done."""
        if self.is_registered:
            getattr(self._api, f"delete_{self._kind}_webhook_configuration")(self.name)
            self.is_registered = False
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _register(self, port: int) -> None:
        create = getattr(self._api, f"create_{self._kind}_webhook_configuration")
        create(self._configuration(port))
        self.is_registered = True

    def _configuration(self, port: int) -> Raw:
        bundle = base64.b64encode(self._authority.certificate.read_bytes()).decode()
        rule = {
            "apiGroups": ["*"],
            "apiVersions": ["*"],
            "operations": [self._operation],
            "resources": [self._plural],
        }
        hook = {
            "name": self.name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "rules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}},
            "clientConfig": {
                "url": f"https://127.0.0.1:{port}/",
                "caBundle": bundle,
            },
        }
        return {"metadata": {"name": self.name}, "webhooks": [hook]}

    def _handler(self, verdict: Verdict, seconds: float) -> type[BaseHTTPRequestHandler]:
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = body["request"]
                # What is deleted is the old object, and no new one takes its place.
                subject = request["object"] or request["oldObject"]
                metadata = subject["metadata"]
                asked.append(metadata.get("name") or metadata.get("generateName", ""))
                time.sleep(seconds)
                refused = verdict(subject)
                answer: Raw = {"uid": request["uid"], "allowed": refused is None}
                if isinstance(refused, dict) and "patch" in refused:
                    answer |= refused | {"allowed": True}
                elif refused is not None:
                    told = {"message": refused} if isinstance(refused, str) else refused
                    answer["status"] = told
                text = json.dumps(body | {"response": answer}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(ssl.SSLEOFError):  # Whoever asked has given up.
                    self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


class Policy:
    """An admission policy for the objects of a kind that are made in a namespace.

    Attributes:
        name: of the policy, which refusals tell.
    """

    def __init__(self, access: Access, namespace: str, plural: str, group: str = "") -> None:
        self._access, self._namespace = access, namespace
        self.name = f"{plural}.{namespace}.policy"
        rule = {
            "apiGroups": [group],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": [plural],
        }
        labels = {"kubernetes.io/metadata.name": namespace}
        self._matches = {
            "resourceRules": [rule],
            "namespaceSelector": {"matchLabels": labels},
        }
        self._made: list[str] = []

    def deny(self, message: str, reason: str = "Invalid", unless: str = "false") -> Self:
        """Refuse what is not so, with what the CEL expression `message` gives."""
        validation = {"expression": unless, "messageExpression": message, "reason": reason}
        self._make("Validating", {"validations": [validation], "failurePolicy": "Fail"}, ["Deny"])
        return self

    def inject(self, container: str) -> Self:
        """Put a container of that name before those of every pod."""
        written = f'{{name: "{container}", image: "registry.test/{container}:1"}}'
        return self.write("/spec/containers/0", f"Object.spec.containers{written}")

    def write(self, path: str, value: str) -> Self:
        """Write what a CEL expression gives at a path of every object."""
        patch = f'JSONPatch{{op: "add", path: "{path}", value: {value}}}'
        mutation = {"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{patch}]"}}
        spec = {"mutations": [mutation], "failurePolicy": "Fail", "reinvocationPolicy": "Never"}
        self._make("Mutating", spec, None)
        return self

    def close(self) -> None:
        """Take the policy back, unless that is done."""
        for kind in reversed(self._made):
            self._access.kubectl("delete", kind, self.name)
        self._made = []

    def _make(self, kind: str, spec: Raw, actions: list[str] | None) -> None:
        kind = f"{kind}AdmissionPolicy"
        binding: Raw = {"policyName": self.name}
        if actions is not None:
            binding["validationActions"] = actions
        for name, content in (
            (kind, spec | {"matchConstraints": self._matches}),
            (f"{kind}Binding", binding),
        ):
            document = {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": name,
                "metadata": {"name": self.name},
                "spec": content,
            }
            self._access.kubectl("create", "-f", "-", text=json.dumps(document))
            self._made.append(name)
