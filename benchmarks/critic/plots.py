"""Draws the runs of `critic_stability.py`: one panel a metric, one line a variant."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from critic.figures import Runs

PANELS = {
    "critic_loss": ("critic loss, in the units that it is trained in", "log"),
    "explained_variance": ("explained variance", "linear"),
    "returns_abs_mean": ("mean |return|", "log"),
    "reward": ("score", "linear"),
    "kl": ("KL in nats an answer", "linear"),
}
LOWEST_EXPLAINED_VARIANCE = -0.5


def draw(runs: Runs, path: Path) -> None:
    """The median over seeds, with the range of all seeds shaded; the path says in which format."""
    # The same runs give the same file.
    with mpl.rc_context({"svg.hashsalt": "critic", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = plt.subplots(2, 3, figsize=(13, 6), layout="constrained")
        axes.flat[-1].set_axis_off()  # Five panels leave the sixth place empty.
        for axis, (metric, (title, scale)) in zip(axes.flat[:-1], PANELS.items(), strict=True):
            for variant, courses in runs.items():
                _line(axis, variant, [course[metric] for course in courses.values()])
            axis.set(title=title, yscale=scale, xlabel="update")
            if metric == "explained_variance":
                axis.set_ylim(LOWEST_EXPLAINED_VARIANCE, 1.05)
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _line(axis: plt.Axes, name: str, courses: Sequence[Sequence[float]]) -> None:
    values = np.array(courses)
    updates = np.arange(1, values.shape[1] + 1)
    # Dashed, since the defaults are one of the other variants.
    style = "--" if name == "default" else "-"
    (line,) = axis.plot(updates, np.median(values, axis=0), style, label=name, linewidth=1)
    axis.fill_between(
        updates, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15
    )
