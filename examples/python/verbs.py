"""Train, validate and predict with the verbs: what plain_loop.py does by hand, and all that a run brings.

    python examples/python/verbs.py

A spec object has the words of the YAML file; each verb gives a report.
"""

from __future__ import annotations

from pathlib import Path

from metricli import (
    AllTriplets,
    Augment,
    Balanced,
    DataSpec,
    MetricsSpec,
    ResizeNormalize,
    Timm,
    TrainingSpec,
    TrainSpec,
    TransformsSpec,
    Triplet,
    ValidationSpec,
    load_extractor,
    predict,
    train,
    validate,
)
from metricli.plugins.optimizers import AdamW

FIGURES = Path(__file__).resolve().parents[2] / "data" / "figures_mini"


def spec_of(*, epochs: int = 15, batches: int = 20) -> TrainSpec:
    """The spec of examples/configs/figures_triplet.yaml."""
    return TrainSpec(
        name="verbs",
        data=DataSpec(table=str(FIGURES / "df.csv")),
        extractor=Timm(model="test_resnet", model_args={"output_stride": 8}, dim=64),
        transforms=TransformsSpec(
            train=Augment(size=64, scale=[0.7, 1.0], rotate=20, hue=0.5, color_jitter=0.4),
            eval=ResizeNormalize(size=64),
        ),
        sampler=Balanced(n_labels=8, n_instances=4, batches=batches),
        loss=Triplet(margin=0.2, miner=AllTriplets(), reduction="mean_active"),
        optimizer=AdamW(lr=2e-3),
        training=TrainingSpec(epochs=epochs),
        validation=ValidationSpec(
            metrics=MetricsSpec(cmc=[1], precision=[], map=[], map_r=True), monitor="cmc@1"
        ),
    )


def main(run_dir: str | Path, *, epochs: int = 15, batches: int = 20) -> dict[str, float]:
    """Train, validate and predict; the metrics of the best epoch come back."""
    report = train(spec_of(epochs=epochs, batches=batches), run_dir=run_dir)
    print(report)  # in a notebook, `report` alone is a table

    judged = validate(ckpt=report.best_ckpt)
    assert judged.metrics == report.metrics
    saved = predict(ckpt=report.best_ckpt, split="validation", out=Path(run_dir) / "features.npy")
    print(f"{saved.rows} features of {saved.dim} numbers in {saved.out}")

    # The model in another program: two lines.
    extractor, transform = load_extractor(report.best_ckpt)
    embedding = extractor(transform(sorted(FIGURES.rglob("*.png"))[0])[None])
    print(f"one image, one embedding: {tuple(embedding.shape)}")
    return report.metrics["OVERALL"]


if __name__ == "__main__":
    print(main("runs/verbs"))
