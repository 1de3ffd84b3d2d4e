"""docs/troubleshooting.md as text: what the tests on a control plane compare is all there is."""

from reason_lines import LINES
from troubleshooting_causes import CAUSES
from troubleshooting_page import PAGE, page, read

from rlhf_api.names import REFUSALS, ConditionType, Reason

TEXT = PAGE.read_text(encoding="utf-8")
RUNBOOK = PAGE.with_name("runbook.md").read_text(encoding="utf-8")


def test_the_page_is_made_from_what_is_shown() -> None:
    made = "PYTHONPATH=tests .venv/bin/python -m troubleshooting_page makes it anew"
    assert page(read(TEXT)) == TEXT, made


def test_each_cause_is_told_in_words_of_the_vocabulary() -> None:
    assert len({cause.title for cause in CAUSES}) == len(CAUSES) >= 20
    for title, shown in read(TEXT).items():
        if shown.condition is None or shown.event is None:
            assert (shown.phase, shown.reason, shown.event) == ("", "", None), title
            continue
        kind, status, reason, _ = shown.condition
        assert kind in list(ConditionType), title
        assert status in ("True", "False"), title
        assert Reason(reason) == shown.reason == shown.event[1], title


def test_every_reason_has_its_line() -> None:
    assert set(LINES) == set(Reason)
    assert all(line.endswith(".") and len(line) > 10 for line in LINES.values())
    rows = TEXT.partition("## Every reason\n")[2].splitlines()[3:]
    told = [row.split()[1] for row in rows]
    assert told[0] == Reason.CRASHED
    assert told[1:] == sorted(set(Reason) - {Reason.CRASHED}, key=str.lower)


def test_the_runbook_names_what_pods_wait_for() -> None:
    waiting = {shown.reason for shown in read(TEXT).values() if shown.phase == "Pending"}
    section = RUNBOOK.partition("\n## PendingTooLong\n")[2].partition("\n## ")[0]
    # What refuses them is told of as a kind, and time in a queue does not count.
    named = waiting - REFUSALS - {Reason.QUEUED} | {Reason.NAME_CONFLICT, Reason.PODS_PENDING}
    assert len(named) >= 8
    assert {reason for reason in named if f"`{reason}`" not in section} == set()
