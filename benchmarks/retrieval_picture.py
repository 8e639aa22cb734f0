"""The picture of benchmarks/retrieval.py: time as a ratio to the yardstick, and extra memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#9ecae1", "#3182bd", "#08306b")
LABELS = {
    "faiss search": "faiss IndexFlatIP\nsearch alone",
    "metricli search": "metricli\nsearch alone",
    "metricli": "metricli\nsearch + all metrics",
    "metricli + pairs": "metricli, the same +\nhistogram of all pairs",
    "OML": "open-metric-learning\nsearch + metrics",
    "PML": "pytorch-metric-learning\nsearch + metrics",
}


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Two panels of bars, a group for each contender and a colour for each size; logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(next(iter(found.values())))
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 0.85 * len(names) + 1.2), sharey=True)
    height = 0.8 / len(found)
    for axes, key, title in (
        (panels[0], "ratio", "time, as a multiple of faiss's search alone"),
        (panels[1], "peak", "extra memory at the peak, MB"),
    ):
        top = max(one.get(key, 0) for size in found.values() for one in size.values())
        low = 0.25 if key == "ratio" else 1.0
        for place, (size, contenders) in enumerate(found.items()):
            where = np.arange(len(names)) + (place - (len(found) - 1) / 2) * height
            values = [contenders[name].get(key, np.nan) for name in names]
            axes.barh(where, values, height * 0.92, color=COLOURS[place % len(COLOURS)], label=size)
            for y, value in zip(where, values, strict=True):
                words = "not run" if np.isnan(value) else _words(key, value)
                start = low if np.isnan(value) else max(value, low)
                back = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "zorder": 4}
                axes.text(start * 1.06, y, words, va="center", fontsize=8, bbox=back, zorder=5)
        axes.set_xscale("log")
        axes.set_xlim(low, top * 3)
        axes.set_title(title, fontsize=11)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    panels[0].axvline(1, color="black", linewidth=0.8, linestyle="--")
    panels[0].set_yticks(np.arange(len(names)), [LABELS.get(name, name) for name in names], fontsize=9)
    panels[0].invert_yaxis()
    panels[1].legend(loc="upper right", fontsize=9, frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def _words(key: str, value: float) -> str:
    return f"{value:.2f}x" if key == "ratio" else f"{value:,.0f}"
