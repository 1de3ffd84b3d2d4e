"""Seconds by phase, by a clock that stands still until it is told to go on."""

import threading
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from reporting import Clock

from rlhf_api.metrics import Phase
from rlhf_trainer.run.phases import PhaseClock


def test_known_phases_begin_at_zero(clock: Clock) -> None:
    phases = PhaseClock([Phase.DATA, Phase.LEARNING], clock=clock)
    clock.now += 5
    assert phases.seconds() == {Phase.DATA: 0.0, Phase.LEARNING: 0.0}


def test_a_phase_adds_up_over_its_visits_and_time_between_them_is_nobodys(clock: Clock) -> None:
    phases = PhaseClock(Phase, clock=clock)
    for seconds in (2, 3):
        with phases.phase(Phase.ROLLOUT):
            clock.now += seconds
        clock.now += 10
    assert phases.seconds()[Phase.ROLLOUT] == 5
    assert sum(phases.seconds().values()) == 5


def test_an_inner_phase_takes_its_time_from_the_outer_one(clock: Clock) -> None:
    phases = PhaseClock(Phase, clock=clock)
    with phases.phase(Phase.LEARNING):
        clock.now += 1
        with phases.phase(Phase.DATA):
            clock.now += 2
            with phases.phase(Phase.CHECKPOINT):
                clock.now += 4
        clock.now += 8
    found = phases.seconds()
    assert (found[Phase.LEARNING], found[Phase.DATA], found[Phase.CHECKPOINT]) == (9, 2, 4)


def test_a_phase_that_goes_on_is_told_as_far_as_it_has_come(clock: Clock) -> None:
    phases = PhaseClock(Phase, clock=clock)
    with phases.phase(Phase.ROLLOUT):
        clock.now += 3
        assert phases.seconds()[Phase.ROLLOUT] == 3
        clock.now += 4
        assert phases.seconds()[Phase.ROLLOUT] == 7
    assert phases.seconds()[Phase.ROLLOUT] == 7


def test_a_phase_that_fails_ends_all_the_same(clock: Clock) -> None:
    phases = PhaseClock(Phase, clock=clock)
    with suppress(KeyError), phases.phase(Phase.SCORING):
        clock.now += 1
        raise KeyError
    clock.now += 10
    assert phases.seconds()[Phase.SCORING] == 1


Visits = list[tuple[Phase, int, "Visits"]]
VISITS: st.SearchStrategy[Visits] = st.recursive(
    st.just([]),
    lambda inner: st.lists(st.tuples(st.sampled_from(Phase), st.integers(0, 9), inner), max_size=3),
    max_leaves=12,
)


@given(VISITS)
def test_phases_add_up_to_the_time_of_the_outermost_ones(visits: Visits) -> None:
    clock = Clock()
    phases = PhaseClock(Phase, clock=clock)

    def visit(found: Visits) -> None:
        for phase, seconds, inner in found:
            with phases.phase(phase):
                clock.now += seconds
                visit(inner)

    before = clock.now
    visit(visits)
    assert sum(phases.seconds().values()) == clock.now - before


def test_another_thread_never_sees_seconds_shrink() -> None:
    phases = PhaseClock(Phase)
    done = threading.Event()
    shrunk: list[tuple[float, float]] = []

    def watch() -> None:
        last = 0.0
        while not done.is_set():
            total = sum(phases.seconds().values())
            if total < last:
                shrunk.append((last, total))
            last = total

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2000):
        with phases.phase(Phase.LEARNING), phases.phase(Phase.DATA):
            pass
    done.set()
    watcher.join(10)
    assert not watcher.is_alive()
    assert not shrunk
