"""An HTTP service as a reward.

Called by `scoring`. It is sent POST {"prompts": [...], "responses": [...]} and answers {"scores":
[...]}, one number a response. What may pass (no connection, no whole answer in time, 429, 5xx) is
tried again after growing pauses with jitter, or after as long as a Retry-After header asks for; any
other answer ends the stage at once. The tries are counted here and not by urllib3, whose own end
with the headers of an answer: its body may break off as well.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from threading import Thread
from typing import Any

import requests
from urllib3.exceptions import DecodeError, HTTPError, InvalidHeader
from urllib3.util import Retry

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import EndpointReward
from rlhf_trainer.errors import ServiceUnavailable
from rlhf_trainer.ppo.rewards.answers import Texts, checked_scores

PAUSE_SECONDS = 1.0
"""The second pause is twice this, and each further one twice the one before; the first is none."""
LONGEST_PAUSE_SECONDS = 120
JITTER_SECONDS = 1.0
LOOK_SECONDS = 0.2
"""A pause hears a request to stop within this."""
_MAY_PASS = frozenset({HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)})
_PART_BYTES = 2**16
_SHOWN_CHARACTERS = 200


class _MayPass(Exception):  # noqa: N818 - named as what it says
    """A try failed, and the next one may not.

    Attributes:
        wished: seconds to wait that the service asked for; None if it did not.
    """

    def __init__(self, what: str, wished: float | None = None) -> None:
        super().__init__(what)
        self.wished = wished


class _AskedToStop(Exception):  # noqa: N818 - named as what it says
    """This rank was asked to stop, and what is still missing is not asked for."""


@dataclass(frozen=True)
class Endpoint:
    """A service that can be asked.

    Attributes:
        spec: its address and limits.
        who: field and value that name it, for messages.
        session: keeps connections.
        asked_to_stop: looked at before and after each try and in pauses.
    """

    spec: EndpointReward
    who: str
    session: requests.Session
    asked_to_stop: Callable[[], bool]

    @classmethod
    def open(
        cls, spec: EndpointReward, field: str, asked_to_stop: Callable[[], bool]
    ) -> "Endpoint":
        """Make ready to ask; nothing is sent.

        Raises:
            ConfigError: the variable that should hold the token is not set.
        """
        session = requests.Session()
        if spec.token_env is not None:
            session.auth = _bearer(spec.token_env, f"{field}.tokenEnv")
        return cls(spec, f"{field}.url: {spec.url}", session, asked_to_stop)

    def __call__(self, texts: Texts) -> list[float]:
        """See `Judge`."""
        try:
            return [score for part in self._parts(texts) for score in part]
        except _AskedToStop:
            return [math.nan] * len(texts.responses)

    def _parts(self, texts: Texts) -> Iterator[list[float]]:
        size = self.spec.batch_size
        for start in range(0, len(texts.responses), size):
            part = texts.rows(start, start + size)
            document = self._asked({"prompts": part.prompts, "responses": part.responses})
            given = document.get("scores") if isinstance(document, dict) else None
            if given is None:
                raise InputError(
                    f"{self.who} answered {_shown(str(document))}; let it answer "
                    '{"scores": [...]}'
                )
            yield checked_scores(given, part, self.who, start)

    def _asked(self, question: dict[str, Any]) -> Any:
        failures = 0
        while True:
            self._leave_if_asked()
            try:
                return self._tried(question)
            except _MayPass as error:
                self._leave_if_asked()
                failures += 1
                if failures > self.spec.retries:
                    raise ServiceUnavailable(
                        f"{self.who} {error} (tried {failures} times); try again when it answers, "
                        "or raise retries or timeoutSeconds"
                    ) from error
                self._wait(_pause_seconds(failures, error.wished))

    def _tried(self, question: dict[str, Any]) -> Any:
        """One try, over at the deadline whatever part of the answer is late.

        A socket's own timeout starts anew with each byte that comes, and headers are read where no
        clock can be looked at: a thread waits for them, and is left alone when it is too late.
        """
        answered: Future[Any] = Future()

        def ask() -> None:
            try:
                answered.set_result(self._answered(question))
            except BaseException as error:  # noqa: BLE001 - raised by the one who asked
                answered.set_exception(error)

        Thread(target=ask, name="reward-endpoint", daemon=True).start()
        try:
            return answered.result(self.spec.timeout_seconds)
        except TimeoutError as error:
            raise self._too_late() from error

    def _answered(self, question: dict[str, Any]) -> Any:
        deadline = time.monotonic() + self.spec.timeout_seconds
        try:
            with self.session.post(
                self.spec.url,
                json=question,
                timeout=self.spec.timeout_seconds,
                # A redirected POST would arrive as a GET.
                allow_redirects=False,
                stream=True,
            ) as answer:
                return self._read(answer, self._body(answer, deadline))
        except DecodeError as error:
            raise InputError(f"{self.who} answered {error}; correct its encoding") from error
        except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
            raise _MayPass(f"cannot be reached: {_cause(error)}") from error
        except requests.RequestException as error:
            raise InputError(f"{self.who} cannot be asked: {error}; correct the url") from error

    def _body(self, answer: requests.Response, deadline: float) -> bytes:
        """All of the body, unless nobody waits for it any more."""
        body = b""
        while part := answer.raw.read1(_PART_BYTES, decode_content=True):
            body += part
            if time.monotonic() > deadline:
                raise self._too_late()
        return body

    def _too_late(self) -> _MayPass:
        return _MayPass(f"timed out: no whole answer in {self.spec.timeout_seconds:g} s")

    def _read(self, answer: requests.Response, body: bytes) -> Any:
        text = _shown(body.decode(errors="replace"))
        said = f"answered {answer.status_code} {answer.reason}: {text}"
        if answer.status_code in _MAY_PASS:
            raise _MayPass(said, _wished_seconds(answer))
        if answer.status_code != HTTPStatus.OK:
            raise InputError(f"{self.who} {said}; correct url, token or service")
        try:
            return json.loads(body)
        except ValueError as error:
            raise InputError(f"{self.who} {said}; let it answer JSON") from error

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._leave_if_asked()
            time.sleep(min(left, LOOK_SECONDS))

    def _leave_if_asked(self) -> None:
        if self.asked_to_stop():
            raise _AskedToStop


def _cause(error: Exception) -> str:
    """What the system said, where it said anything; libraries put words of their own around it."""
    reason, at = str(error), error.__context__
    while at is not None:
        # A requests.RequestException is an OSError as well.
        if isinstance(at, OSError) and not isinstance(at, requests.RequestException):
            reason = f"{type(at).__name__}: {at}"
        at = at.__context__
    return reason


def _pause_seconds(failures: int, wished: float | None) -> float:
    if wished:
        return wished
    if failures == 1:
        return 0.0
    # Not the stream that is seeded: how often a service failed must not change the training.
    jitter = JITTER_SECONDS * random.SystemRandom().random()
    return min(PAUSE_SECONDS * 2.0 ** (failures - 1) + jitter, LONGEST_PAUSE_SECONDS)


def _wished_seconds(answer: requests.Response) -> float | None:
    header = answer.headers.get("Retry-After")
    if header is None:
        return None
    try:
        return Retry(retry_after_max=LONGEST_PAUSE_SECONDS).parse_retry_after(header)
    except InvalidHeader:
        return None


def _bearer(variable: str, field: str) -> Any:
    """What adds the token to a request; as `auth`, so that no .netrc takes its place."""
    token = os.environ.get(variable)
    if not token:
        raise ConfigError(
            f"{field}: environment variable {variable} is not set; set it by env or envFrom"
        )

    def add(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return add


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
