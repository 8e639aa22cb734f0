"""The picture of benchmarks/losses.py: times as a ratio to the bare product, a panel for each section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"metricli": "#3182bd", "metricli, soft margin": "#9ecae1", "OML": "#636363", "PML": "#bdbdbd"}
GOAL = ("all triplets", 6)
"""The most that our margin loss is to take, a dashed line."""


def draw(found: dict[tuple[str, int, int], dict[str, dict[str, Any]]], file: Path) -> None:
    """Bars for each contender of each section and size that was timed; logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = {key: one for key, one in found.items() if any("ratio" in entry for entry in one.values())}
    sections = list(dict.fromkeys(section for section, _, _ in timed))
    rows = max(sum(key[0] == section for key in timed) for section in sections)
    figure, panels = pyplot.subplots(1, len(sections), figsize=(6 * len(sections), 1.1 * rows + 1.2))
    top = max(entry.get("ratio", 0) for one in timed.values() for entry in one.values())
    for axes, section in zip(np.atleast_1d(panels), sections, strict=True):
        sizes = [key for key in timed if key[0] == section]
        names = [name for name in COLOURS if name in timed[sizes[0]]]
        height = 0.8 / len(names)
        for place, name in enumerate(names):
            where = np.arange(len(sizes)) + (place - (len(names) - 1) / 2) * height
            values = [timed[key][name].get("ratio", np.nan) for key in sizes]
            axes.barh(where, values, height * 0.92, color=COLOURS[name], label=name)
            for y, value in zip(where, values, strict=True):
                words = "not run" if np.isnan(value) else f"{value:.1f}x"
                axes.text(1 if np.isnan(value) else value * 1.06, y, words, va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(0.8, top * 3)
        if section == GOAL[0]:
            axes.axvline(GOAL[1], color="black", linewidth=0.8, linestyle="--")
        axes.set_yticks(np.arange(len(sizes)), [f"B = {b}\n{k} instances" for _, b, k in sizes], fontsize=9)
        axes.invert_yaxis()
        axes.set_title(f"{section}: time by that of x @ x.T, with backward", fontsize=11)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=4, fontsize=9, frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
