"""`docs/troubleshooting.md`, made from what a person sees of `staged_causes`.

`PYTHONPATH=tests .venv/bin/python -m troubleshooting_page` stages them and writes the page anew;
tests/rlhf_operator/live/test_troubleshooting.py stages them again and compares.
"""

import re
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

import staged_causes as staged
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import access_by
from reason_lines import every_reason
from staged_causes import Scene, Shown
from troubleshooting_causes import CAUSES, Cause

PAGE = Path(__file__).resolve().parent.parent / "docs" / "troubleshooting.md"

_HEAD = """\
# Troubleshooting

A job that does not run says why in three places, in the same words: the column Reason, a condition
and an Event.

```console
$ kubectl -n NAMESPACE get rlhf JOB -o wide
$ kubectl -n NAMESPACE describe rlhf JOB
```

Below is what they show for each cause; the tests bring each about and compare. In a box stand
Phase and Reason of the first command, then the condition that tells of the cause, and its Event.
An Event is told when a cause begins, and not again while it lasts. What is waited for is tried
again by itself, at least once a minute, and no restart is counted for it. Where the cluster refuses
a child or a pod, `runPolicy.pendingDeadlineSeconds` is the only deadline that runs on; in a queue
none does.

Of the spec only `suspend`, `runPolicy` and `guardrails` may change while the job lives. For all
else delete it and create it anew, or give the new one another name.

A stage that has run and is to be restarted shows the reason until its next attempt is made: a
second after a disruption, and longer with each failure. Later its Events tell of it, and the counts
`restarts` and `disruptions` in `status.stages`. The pods of the newest
`runPolicy.keepFailedAttempts` failed attempts of a stage stay for their logs:
`kubectl -n NAMESPACE logs -l rlhf.dev/job=JOB --prefix --tail=-1`. The logs of pods that had to be
ended are lost, as no cluster keeps those of a pod that was deleted: of an attempt that hangs
(`ProgressDeadlineExceeded`), exceeds a deadline, or in which a sidecar runs on, as its Event says;
of one that is suspended or disrupted; and of the pods that still ran when another one of their gang
failed. Where that is not enough, collect logs outside of the pods.

A reason that is no cause below stands in the [table of all](#every-reason). Exit codes of the
trainer: [exit-codes.md](exit-codes.md). Alerts: [runbook.md](runbook.md).

"""


def seen(scene: Scene, cause: Cause) -> Shown:
    """What is shown of a cause that has been staged."""
    if cause.condition is None or cause.reason is None:
        job = scene.jobs.get(staged.NAME)
        return Shown(staged.column(job, "Phase"), staged.column(job, "Reason"))
    return staged.shown(scene, cause.condition, cause.reason)


def page(shown: Mapping[str, Shown]) -> str:
    """The text of the page.

    Args:
        shown: what is seen of each cause, by its title.
    """
    columns = ("cause", "Phase", "Reason", "condition", "Event")
    table = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    table += [_row(cause.title, shown[cause.title]) for cause in CAUSES]
    sections = (_section(cause, shown[cause.title]) for cause in CAUSES)
    links = {cause.reason: _link(cause.title) for cause in CAUSES if cause.reason}
    return _HEAD + "\n".join(table) + "\n" + "".join(sections) + "\n" + every_reason(links)


def read(text: str) -> dict[str, Shown]:
    """What a page says that is seen of each cause, by its title."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title = part.partition("\n")[0]
        box = re.search(r"```text\n(.*?)```", part, re.DOTALL)
        if box is None:
            continue
        lines = [re.split(r" {2,}", line) for line in box[1].splitlines()]
        by_kind = {kind: tuple(rest) for kind, *rest in lines}
        phase, reason = (each.strip("-") for each in by_kind["get"])
        found[title] = Shown(phase, reason, by_kind.get("condition"), by_kind.get("event"))
    return found


def _link(title: str) -> str:
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _row(title: str, shown: Shown) -> str:
    condition = f"{shown.condition[0]} {shown.condition[1]}" if shown.condition else ""
    event = f"{shown.event[0]} {shown.event[1]}" if shown.event else ""
    return f"| {_link(title)} | {shown.phase} | {shown.reason} | {condition} | {event} |"


def _section(cause: Cause, shown: Shown) -> str:
    lines = ["  ".join(("get      ", shown.phase or "-", shown.reason or "-"))]
    lines += ["  ".join(("condition", *shown.condition))] if shown.condition else []
    lines += ["  ".join(("event    ", *shown.event))] if shown.event else []
    box = "\n".join(line.strip() for line in lines)
    return (
        f"\n## {cause.title}\n\n```text\n{box}\n```\n\n"
        f"{_paragraph(cause.means)}\n\n{_paragraph(f'**What to do:** {cause.remedy}')}\n"
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Stage every cause and write the page."""
    shown = {}
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as own:
        access = access_by(own.kubeconfig, own)
        for cause in CAUSES:
            with Scene.open(access, own, Path(folder)) as scene:
                cause.stage(scene)
                shown[cause.title] = seen(scene, cause)
            sys.stdout.write(f"{cause.title}: {shown[cause.title]}\n")
    PAGE.write_text(page(shown), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
