"""An endpoint as a reward, against a real server: what is sent, tried again, and refused."""

import gzip
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import EndpointReward
from rlhf_trainer.errors import ServiceUnavailable
from rlhf_trainer.ppo.rewards import endpoint
from rlhf_trainer.ppo.rewards.answers import Texts
from rlhf_trainer.ppo.rewards.endpoint import Endpoint

FIELD = "spec.stages.ppo.rewards[1].endpoint"
TEXTS = Texts(["a", "bb", "ccc"], ["x", "yy", "zzzz"])
SCORES = [2.0, 4.0, 7.0]

Answer = tuple[int, dict[str, str], str | Iterator[str]]

BROKEN = (200, {"Content-Length": "50"}, "{")
"""Breaks off after the headers: HTTP/1.0 closes the connection."""


def scores_of(question: dict[str, Any]) -> Answer:
    pairs = zip(question["prompts"], question["responses"], strict=True)
    scores = [len(prompt) + len(response) for prompt, response in pairs]
    return 200, {}, json.dumps({"scores": scores})


def late(question: dict[str, Any]) -> Answer:
    time.sleep(1)
    return scores_of(question)


def never() -> bool:
    return False


def trickle(question: dict[str, Any]) -> tuple[int, dict[str, str], Iterator[str]]:
    """A byte each 0.1 s: no read takes long, all of them together do."""
    _, _, text = scores_of(question)

    def slowly() -> Iterator[str]:
        for character in text:
            time.sleep(0.1)
            yield character

    return 200, {"Content-Length": str(len(text))}, slowly()


class Service(ThreadingHTTPServer):
    """Gives each of `first` once, then `scores_of`; keeps what it was asked and when."""

    daemon_threads = True

    def __init__(self, first: list[Answer | Callable[[dict[str, Any]], Answer]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first = list(first)
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []

    def handle_error(self, *arguments: object) -> None:
        """Clients that hang up are part of these tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        service = self.server
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.questions.append(question)
        service.headers.append(dict(self.headers))
        service.times.append(time.monotonic())
        answer = service.first.pop(0) if service.first else scores_of
        code, headers, text = answer(question) if callable(answer) else answer
        length = {"Content-Length": str(len(text))} if isinstance(text, str) else {}
        self.send_response(code)
        for name, value in (length | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for part in [text] if isinstance(text, str) else text:
            self.wfile.write(part.encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Starts a service that gives these answers first."""
    services: list[Service] = []

    def start(*first: Any) -> Service:
        service = Service(list(first))
        threading.Thread(target=service.serve_forever, daemon=True).start()
        services.append(service)
        return service

    yield start
    for service in services:
        service.shutdown()
        service.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(endpoint, "JITTER_SECONDS", 0.01)


def asked(
    service: Service, asked_to_stop: Callable[[], bool] = never, **settings: Any
) -> list[float]:
    opened = Endpoint.open(EndpointReward(url=service.url, **settings), FIELD, asked_to_stop)
    try:
        return opened(TEXTS)
    finally:
        opened.session.close()


@pytest.mark.field("EndpointReward.batch_size")
def test_rows_are_sent_in_batches(serve: Callable[..., Service]) -> None:
    service = serve()
    assert asked(service, batch_size=2) == SCORES
    assert service.questions == [
        {"prompts": ["a", "bb"], "responses": ["x", "yy"]},
        {"prompts": ["ccc"], "responses": ["zzzz"]},
    ]
    assert "Authorization" not in service.headers[0]


@pytest.mark.field("EndpointReward.token_env")
def test_a_token_is_sent(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORES_TOKEN", "abc")
    service = serve()
    assert asked(service, token_env="SCORES_TOKEN") == SCORES
    assert service.headers[0]["Authorization"] == "Bearer abc"


def test_a_missing_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORES_TOKEN", raising=False)
    spec = EndpointReward(url="http://nowhere.invalid", token_env="SCORES_TOKEN")
    with pytest.raises(ConfigError, match=r"rewards\[1\].endpoint.tokenEnv: .*SCORES_TOKEN is not"):
        Endpoint.open(spec, FIELD, never)


@pytest.mark.parametrize(
    "first",
    [
        [(500, {}, "down")],
        [(429, {}, "slowly"), (503, {}, "down"), (502, {}, "down")],
        [late],
        [BROKEN, BROKEN],
        [trickle],
    ],
    ids=["500", "429-503-502", "timeout", "broken", "trickle"],
)
def test_what_may_pass_is_tried_again(serve: Callable[..., Service], first: list[Any]) -> None:
    service = serve(*first)
    assert asked(service, retries=3, timeout_seconds=0.5) == SCORES
    assert len(service.questions) == len(first) + 1
    # The whole question again.
    assert all(question == service.questions[0] for question in service.questions)


def test_pauses_grow(serve: Callable[..., Service]) -> None:
    service = serve(*[(500, {}, "down")] * 4)
    assert asked(service, retries=4) == SCORES
    pauses = [after - before for before, after in pairwise(service.times)]
    # None, then 2, 4 and 8 times 0.05 s.
    assert [pause >= least for pause, least in zip(pauses, (0, 0.1, 0.2, 0.4), strict=True)] == [
        True
    ] * 4


def test_a_service_may_say_when_to_come_back(serve: Callable[..., Service]) -> None:
    service = serve((429, {"Retry-After": "1"}, "slowly"))
    assert asked(service, retries=1) == SCORES
    assert service.times[1] - service.times[0] >= 1


@pytest.mark.parametrize(("code", "retries"), [(500, 0), (500, 2), (429, 1)])
@pytest.mark.field("EndpointReward.retries")
def test_a_service_that_stays_down_is_unavailable(
    serve: Callable[..., Service], code: int, retries: int
) -> None:
    service = serve(*[(code, {}, "no")] * 5)
    with pytest.raises(ServiceUnavailable) as caught:
        asked(service, retries=retries)
    assert len(service.questions) == retries + 1
    told = str(caught.value)
    words = [f"{FIELD}.url: {service.url}", f"answered {code}", "no", f"{retries + 1} times"]
    assert [word for word in words if word not in told] == []


@pytest.mark.field("EndpointReward.timeout_seconds")
@pytest.mark.field("EndpointReward.url", instead="http://127.0.0.1:1")
def test_silence_is_unavailable(serve: Callable[..., Service]) -> None:
    service = serve(late, late)
    with pytest.raises(ServiceUnavailable, match=r"timed out.*tried 2 times"):
        asked(service, retries=1, timeout_seconds=0.2)


def test_a_connection_that_breaks_is_unavailable(serve: Callable[..., Service]) -> None:
    service = serve(*[BROKEN] * 5)
    with pytest.raises(ServiceUnavailable, match=r"cannot be reached: .*broken.*tried 3 times"):
        asked(service, retries=2)
    assert len(service.questions) == 3


def test_an_answer_that_trickles_is_unavailable(serve: Callable[..., Service]) -> None:
    service = serve(trickle, trickle)
    with pytest.raises(ServiceUnavailable, match=r"no whole answer in 0.3 s .*tried 2 times"):
        asked(service, retries=1, timeout_seconds=0.3)
    assert len(service.questions) == 2


def test_headers_that_trickle_are_unavailable_in_time(serve: Callable[..., Service]) -> None:
    """The thread that still reads them holds back neither the next try nor the end."""
    released = threading.Event()

    class Trickling(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.times.append(time.monotonic())
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            # Less than the timeout apart, until the test is over.
            while not released.wait(0.05):
                self.wfile.write(b"x")

    service = serve()
    service.RequestHandlerClass = Trickling
    began = time.monotonic()
    try:
        with pytest.raises(ServiceUnavailable, match=r"no whole answer in 0.4 s .*tried 2 times"):
            asked(service, retries=1, timeout_seconds=0.4)
        assert time.monotonic() - began < 30
        assert len(service.times) == 2
    finally:
        released.set()


def test_an_answer_may_be_compressed(serve: Callable[..., Service]) -> None:
    class Compressed(Handler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = gzip.compress(str(scores_of(question)[2]).encode())
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    service = serve()
    service.RequestHandlerClass = Compressed
    assert asked(service) == SCORES


def test_a_request_to_stop_ends_a_pause(serve: Callable[..., Service]) -> None:
    service = serve(*[(429, {"Retry-After": "60"}, "slowly")] * 5)
    began = time.monotonic()
    found = asked(service, lambda: time.monotonic() > began + 0.5, retries=5)
    assert [math.isnan(score) for score in found] == [True] * 3
    assert len(service.questions) == 1
    assert time.monotonic() - began < 30


def test_a_request_to_stop_ends_the_batches(serve: Callable[..., Service]) -> None:
    service = serve()
    found = asked(service, lambda: len(service.questions) > 1, batch_size=1)
    assert [math.isnan(score) for score in found] == [True] * 3
    assert len(service.questions) == 2


def test_a_last_try_that_fails_is_no_failure_of_a_rank_that_stops(
    serve: Callable[..., Service],
) -> None:
    service = serve((500, {}, "down"))
    found = asked(service, lambda: len(service.questions) > 0, retries=0)
    assert [math.isnan(score) for score in found] == [True] * 3


def test_pauses_leave_the_seeded_stream_alone(serve: Callable[..., Service]) -> None:
    before = random.getstate()
    asked(serve(*[(500, {}, "down")] * 2), retries=2)
    assert random.getstate() == before


def test_nobody_there_is_told_in_the_words_of_the_system() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        opened = Endpoint.open(EndpointReward(url=url, retries=0), FIELD, never)
        with pytest.raises(ServiceUnavailable) as caught:
            opened(TEXTS)
    assert str(caught.value) == (
        f"{FIELD}.url: {url} cannot be reached: ConnectionRefusedError: [Errno 111] Connection "
        "refused (tried 1 times); try again when it answers, or raise retries or timeoutSeconds"
    )


def test_nobody_there_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        opened = Endpoint.open(EndpointReward(url=url, retries=1), FIELD, never)
        with pytest.raises(ServiceUnavailable, match=r"cannot be reached: .*refused.*2 times"):
            opened(TEXTS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {}, "no such model"), ["answered 400", "no such model", "correct url"]),
        ((401, {}, ""), ["answered 401", "token"]),
        ((302, {"Location": "/other"}, ""), ["answered 302"]),
        ((200, {}, "<html>"), ["<html>", "let it answer JSON"]),
        ((200, {}, '{"score": [1]}'), ["{'score': [1]}", '{"scores": [...]}']),
        ((200, {}, "[1, 2, 3]"), ["[1, 2, 3]", '{"scores": [...]}']),
        ((200, {}, '{"scores": [1, 2]}'), ["2 scores for 3 responses"]),
        ((200, {}, '{"scores": 1}'), ["1 and no list"]),
        ((200, {}, '{"scores": [1, "2", 3]}'), ["'2' for row 1", "'bb'", "'yy'"]),
        ((200, {}, '{"scores": [1, 2, NaN]}'), ["nan for row 2"]),
        ((200, {}, '{"scores": [1, null, 3]}'), ["None for row 1"]),
    ],
)
def test_a_wrong_answer_ends_at_once(
    serve: Callable[..., Service], answer: Answer, words: list[str]
) -> None:
    service = serve(answer)
    with pytest.raises(InputError) as caught:
        asked(service)
    assert len(service.questions) == 1
    told = str(caught.value)
    assert [word for word in [f"{FIELD}.url: {service.url}", *words] if word not in told] == []


def test_a_row_has_its_number_in_the_whole_question(serve: Callable[..., Service]) -> None:
    service = serve(scores_of, (200, {}, '{"scores": [NaN]}'))
    with pytest.raises(InputError, match="nan for row 2"):
        asked(service, batch_size=2)
