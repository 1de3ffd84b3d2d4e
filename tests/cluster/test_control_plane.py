"""The control plane itself: who may talk to its parts."""

import ssl
import urllib.error
import urllib.request

import pytest
from cluster.control_plane import ControlPlane


def ask(url: str, context: ssl.SSLContext) -> int:
    with urllib.request.urlopen(url, timeout=30, context=context) as answer:
        return int(answer.status)


def test_etcd_answers_nobody_without_a_certificate(own_control_plane: ControlPlane) -> None:
    health = f"{own_control_plane.etcd}/health"
    stranger = ssl.create_default_context(cafile=str(own_control_plane.authority.certificate))
    with pytest.raises((urllib.error.URLError, OSError)):
        ask(health, stranger)
    known = ssl.create_default_context(cafile=str(own_control_plane.authority.certificate))
    known.load_cert_chain(*own_control_plane.etcd_client)
    assert ask(health, known) == 200
