"""Train, validate and predict in a plain PyTorch loop, with components of metricli and no spec.

    python examples/python/plain_loop.py

The other way to the same numbers is verbs.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metricli import Augment, ResizeNormalize
from metricli.components.dataset import ImageDataset, Place
from metricli.components.extractors import timm_extractor
from metricli.components.loading import image_loader
from metricli.components.losses import TripletLoss
from metricli.components.miners import AllTriplets
from metricli.components.param_groups import parameter_groups
from metricli.components.samplers import BalancedSampler
from metricli.core.exclusion import Exclusion
from metricli.core.metrics import retrieval_metrics, summarize
from metricli.core.retrieval import count_relevant, search
from metricli.data.table import Rows, read_table

TABLE = Path(__file__).resolve().parents[2] / "data" / "figures_mini" / "df.csv"
SEED = 0


def codes(texts: Any) -> torch.Tensor:
    """Texts (N,) as 0..L-1, in sorted order."""
    return torch.from_numpy(np.unique(np.asarray(texts, dtype=str), return_inverse=True)[1])


def embed(extractor: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """The embeddings (N, D) of some rows, in their order."""
    dataset = ImageDataset(
        root=rows.root, paths=rows.paths, boxes=rows.boxes, transform=ResizeNormalize(size=64).build()
    )
    batches = [list(range(at, min(at + 128, len(rows)))) for at in range(0, len(rows), 128)]
    with torch.inference_mode():
        extractor.eval()
        return torch.cat([extractor(batch.images) for batch in image_loader(dataset, batches, num_workers=0)])


def judge(embeddings: torch.Tensor, rows: Rows) -> dict[str, float]:
    """cmc@1 and map@r of the queries; none finds itself, or an image of its own sequence."""
    labels, sequences = codes(rows.labels), codes(rows.sequences)
    sequences[torch.from_numpy(np.asarray(rows.sequences) == "")] = -1  # in none
    asked, there = (torch.from_numpy(np.flatnonzero(flags)) for flags in (rows.is_query, rows.is_gallery))
    hidden = Exclusion(asked, there, sequences[asked], sequences[there])
    relevant = count_relevant(labels[asked], labels[there], hidden)
    found = search(embeddings[asked], embeddings[there], k=int(relevant.max()), exclude=hidden)
    values = retrieval_metrics(found, labels[asked], labels[there], relevant, cmc=[1], map_r=True)
    return summarize(values)["OVERALL"]


def main(out: str | Path, *, epochs: int = 15, batches: int = 20) -> dict[str, float]:
    """Train, keep the best epoch by cmc@1, save its features to `out`; its metrics come back."""
    table = read_table(TABLE)
    train, validation = table.split("train"), table.split("validation")
    labels = codes(train.labels).numpy()

    torch.manual_seed(SEED)
    extractor = timm_extractor("test_resnet", model_args={"output_stride": 8}, dim=64)
    loss = TripletLoss(margin=0.2, miner=AllTriplets(), reduction="mean_active")
    sampler = BalancedSampler(labels=labels, n_labels=8, n_instances=4, batches=batches, seed=SEED)
    dataset = ImageDataset(
        root=train.root,
        paths=train.paths,
        boxes=train.boxes,
        labels=labels,
        transform=Augment(size=64, scale=[0.7, 1.0], rotate=20, hue=0.5, color_jitter=0.4).build(),
        seed=SEED,
    )
    # No weight decay on norms and biases, which is all that these groups are about.
    optimizer = torch.optim.AdamW(parameter_groups(extractor, loss, lr=2e-3, weight_decay=0.01))
    last = epochs * len(sampler) - 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * min(1, step / last))) / 2
    )

    best, weights = {"cmc@1": -1.0}, extractor.state_dict()
    for epoch in range(epochs):
        extractor.train()
        sampler.set_epoch(epoch)
        # A Place says which draw of the augmentation an image gets: the same with any number of workers.
        places, position = [], 0
        for rows in sampler:
            places.append([Place(int(row), epoch, position + i) for i, row in enumerate(rows)])
            position += len(rows)
        for batch in image_loader(dataset, places, num_workers=0):
            optimizer.zero_grad()
            loss(extractor(batch.images), batch.labels).backward()
            optimizer.step()
            schedule.step()
        metrics = judge(embed(extractor, validation), validation)
        print(f"epoch {epoch + 1}: {metrics}")
        if metrics["cmc@1"] > best["cmc@1"]:
            best = metrics
            weights = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}

    extractor.load_state_dict(weights)
    np.save(out, embed(extractor, validation).numpy())
    return best


if __name__ == "__main__":
    print(main("plain_features.npy"))
