"""Gangs under a real launcher: requests to stop, first causes, other nodes, what is left behind."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launched, Launchers, free_port
from waiting import eventually

from rlhf_api.names import Reason


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launchers]:
    launchers = Launchers(tmp_path)
    yield launchers
    launchers.end()


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A gang that takes half a minute to end, so that other tests run in the meantime."""
    launchers = Launchers(tmp_path_factory.mktemp("stuck"))
    yield launchers({0: "deaf", 1: "@0:exit 65"}, processes=2)
    launchers.end()


@pytest.mark.usefixtures("stuck")
def test_the_first_of_two_failures_in_one_poll_is_named(launch: Launchers) -> None:
    launched = launch({0: "second DataError", 1: "first InputError"}, processes=2)
    assert launched.wait() == 66
    assert launched.result().message == "rank 1: InputError of this rank"


def test_what_the_agent_stops_is_not_the_cause(launch: Launchers) -> None:
    launched = launch({0: "stop 5", 1: "@0:signal 9"}, processes=2)
    assert launched.wait() == 137
    assert launched.result().message == "rank 1 was killed by signal 9 (Killed); see its log"


def test_a_lost_peer_is_named_only_if_no_rank_tells_more(launch: Launchers) -> None:
    launched = launch({0: "@1:exit 80", 1: "slow 3"}, processes=2)
    assert launched.wait() == 3


@pytest.mark.parametrize(
    ("gpu", "processes", "code"), [(True, 2, 80), (False, 2, 134), (True, 1, 134)]
)
def test_what_nccls_watchdog_aborts_has_lost_a_peer(
    launch: Launchers, gpu: bool, processes: int, code: int
) -> None:
    """It aborts the process, without a word; one rank has nobody to wait for."""
    launched = launch(dict.fromkeys(range(processes), "signal 6"), processes=processes, gpu=gpu)
    assert launched.wait() == code
    result = launched.result()
    assert (result.reason is Reason.PEER_LOST) == (code == 80)
    assert ("NCCL" in result.message) == (code == 80)


def test_a_cause_is_named_before_what_a_watchdog_aborted(launch: Launchers) -> None:
    launched = launch({0: "@1:signal 6", 1: "slow 3"}, processes=2, gpu=True)
    assert launched.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("kept", "code"), [("5", 75), ("none", 143)])
def test_a_request_to_stop_reaches_the_ranks(
    launch: Launchers, number: int, processes: int, kept: str, code: int
) -> None:
    launched = launch(dict.fromkeys(range(processes), f"stop {kept}"), processes=processes)
    launched.ask_to_stop(processes, number)
    assert launched.wait() == code
    result = launched.result()
    assert (result.reason, result.step) == (Reason.STOPPED, 7)
    assert result.last_checkpoint_step == (5 if code == 75 else None)


@pytest.mark.parametrize("processes", [1, 2])
def test_ranks_that_do_not_stop_are_killed_before_the_grace_period_ends(
    launch: Launchers, processes: int
) -> None:
    launched = launch({processes - 1: "deaf", 0: "deaf"}, processes=processes, grace=2.0)
    asked = launched.ask_to_stop(processes)
    assert launched.wait() == 143
    # The other second of the grace period is left for the launcher itself.
    assert time.monotonic() - asked >= 1.0
    assert "did not stop within 1 s" in launched.result().message


def test_a_rank_that_dies_of_the_signal_left_no_checkpoint(launch: Launchers) -> None:
    launched = launch({0: "hang"})
    launched.ask_to_stop(1)
    assert launched.wait() == 143
    assert launched.result().reason == Reason.STOPPED


def test_a_node_that_waits_for_others_heeds_a_request_to_stop(launch: Launchers) -> None:
    launched = launch({}, nodes=2, node=0, port=free_port())
    eventually(lambda: launched.log.exists() and "starts ranks" in launched.log.read_text())
    assert launched.process.pid is not None
    os.kill(launched.process.pid, signal.SIGTERM)
    assert launched.wait() == 143
    assert "before the ranks were started" in launched.result().message


def test_orphans_are_collected(launch: Launchers, tmp_path: Path) -> None:
    launched = launch({0: f"orphan {tmp_path / 'note'}"}, subreaper=True)
    assert launched.wait() == 0, "the rank does not succeed before its orphan is collected"


def test_what_a_killed_rank_started_does_not_live_on(launch: Launchers, tmp_path: Path) -> None:
    note = tmp_path / "child"
    launched = launch({0: f"child {note}"})
    assert launched.wait() == 137
    child = Path("/proc") / note.read_text().strip() / "stat"
    eventually(lambda: not child.exists() or child.read_text().split()[2] == "Z")


@pytest.mark.parametrize(("stage", "code"), [("killed", 137), ("bad-data", 65)])
def test_a_peer_that_waits_in_a_collective_does_not_hide_the_cause(
    launch: Launchers, stage: str, code: int
) -> None:
    launched = launch(stage, processes=2)
    assert launched.wait() == code
    assert launched.result().message.startswith("rank 1")
    assert "rank 0 ERROR rlhf_trainer.rank: PeerLost" in launched.log.read_text()


def test_all_ranks_stop_after_the_same_step(launch: Launchers) -> None:
    launched = launch("steps", processes=2)
    launched.ask_to_stop(2)
    assert launched.wait() == 75
    steps = {(launched.folder / f"step-of-rank-{rank}").read_text() for rank in range(2)}
    assert steps == {str(launched.result().step)}


def test_the_node_with_the_cause_tells_it_and_the_other_a_lost_peer(launch: Launchers) -> None:
    port = free_port()
    first, second = (launch("bad-data", nodes=2, node=node, port=port) for node in range(2))
    assert (first.wait(), second.wait()) == (80, 65)
    assert first.result().reason == Reason.PEER_LOST
    assert second.result().message == ("rank 1: data.jsonl:3: field chosen: None; give a text")


def test_a_rank_that_neither_fails_nor_stops_does_not_hold_the_gang(stuck: Launched) -> None:
    assert stuck.wait() == 65
    assert stuck.result().message == "rank 1 left with exit code 65; see its log"
