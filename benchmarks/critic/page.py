"""The parts of pages that are made from the figures of `critic_stability.py`.

    PYTHONPATH=benchmarks python -m critic.page docs/critic.json docs/critic.md

A page holds them between two comments of Markdown, `<!-- critic: NAME -->` and `<!-- /critic -->`;
all else of it stays.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from critic.figures import BROKEN, GOALS, SECONDS, Figures, cell
from critic.toy import VARIANTS

_BLOCK = re.compile(r"(<!-- critic: (\w+) -->\n).*?(<!-- /critic -->)", re.DOTALL)

COLUMNS = {
    "explained variance at the end, lowest seed": ("explained_variance_min", ".2f"),
    "highest seed": ("explained_variance_max", ".2f"),
    "final score / best of the seed, lowest": ("best_score_share_min", ".4f"),
    "peak of critic loss / its start, lowest seed": ("critic_loss_growth_min", ".1f"),
    "highest": ("critic_loss_growth_max", ".1f"),
    "critic loss / that of the mean, at the end": ("critic_loss_over_mean", ".2f"),
    "growth of returns": ("return_scale_growth", ".1f"),
    "KL at the end": ("kl_end", ".1f"),
    "`CriticLossDiverging` broken from update, earliest seed": (f"{BROKEN}_from_min", ".0f"),
    "on seeds": (f"{BROKEN}_seeds", ".0f"),
}
"""Headings of the table of all variants, with the figure below and how it is written."""

DECISION = ("default", "runningStd", "report", "popArt", "gamma99", "none")
"""Variants of the decision's table."""


def variants_table(found: Figures) -> str:
    """All figures, a row a variant."""
    return _table(found, tuple(VARIANTS), tuple(COLUMNS))


def decision_table(found: Figures) -> str:
    """What the decision rests on."""
    return _table(found, DECISION, tuple(COLUMNS)[:4])


def goals_table(found: Figures) -> str:
    """The goals, and what was found."""
    rows = ["| goal | found |", "|---|---|"]
    for goal in GOALS:
        form = ".0f" if goal.figure == SECONDS else ".4g"
        said = f"{goal.comparison} {goal.limit:g}"
        rows.append(f"| `{goal.figure}` {said} | {cell(found, goal.figure, form)} |")
    return "\n".join(rows) + "\n"


PARTS: dict[str, Callable[[Figures], str]] = {
    "variants": variants_table,
    "decision": decision_table,
    "goals": goals_table,
}


def with_figures(text: str, found: Figures) -> str:
    """A page with each of its parts made anew."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{PARTS[block[2]](found)}\n{block[3]}", text)


def write_pages(pages: Sequence[Path], found: Figures) -> None:
    """Make the parts of `pages` anew."""
    for page in pages:
        page.write_text(with_figures(page.read_text("utf-8"), found), "utf-8")


def _table(found: Figures, variants: Sequence[str], headings: Sequence[str]) -> str:
    rows = ["| variant | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for variant in variants:
        cells = [
            cell(found, f"{variant}.{COLUMNS[each][0]}", COLUMNS[each][1]) for each in headings
        ]
        rows.append(f"| `{variant}` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    source, *targets = map(Path, sys.argv[1:])
    write_pages(targets, json.loads(source.read_text("utf-8")))
