"""A loss, miner and distance of pytorch-metric-learning in a run of metricli (the extra `pml`).

    python examples/python/pml_losses.py

Names are those of the classes; a head's sizes (num_classes, embedding_size) are filled in by themselves.
"""

from __future__ import annotations

from pathlib import Path

from verbs import spec_of  # all but the loss is the same

from metricli import train
from metricli.plugins.losses.pml import PML
from metricli.plugins.pml import PMLPart

LOSSES = {
    "pairs": PML(
        loss="MultiSimilarityLoss",
        args={"alpha": 2, "beta": 50, "base": 0.5},
        miner=PMLPart(name="MultiSimilarityMiner", args={"epsilon": 0.1}),
        distance=PMLPart(name="CosineSimilarity"),
    ),
    "head": PML(loss="ArcFaceLoss", args={"margin": 28.6, "scale": 30}),  # the margin in degrees, as there
}


def main(folder: str | Path, *, epochs: int = 15, batches: int = 20) -> dict[str, float]:
    """Train with each of them; name -> cmc@1 of the best epoch."""
    found = {}
    for name, loss in LOSSES.items():
        spec = spec_of(epochs=epochs, batches=batches).model_copy(update={"name": name, "loss": loss})
        report = train(spec, run_dir=Path(folder) / name)
        found[name] = report.metrics["OVERALL"]["cmc@1"]
    return found


if __name__ == "__main__":
    print(main("runs/pml"))
