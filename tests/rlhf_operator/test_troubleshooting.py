"""docs/troubleshooting.md as text: what the tests on a control plane compare is all there is."""

from troubleshooting_page import CAUSES, PAGE, page, read

from rlhf_api.names import ConditionType, Reason

TEXT = PAGE.read_text(encoding="utf-8")


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
