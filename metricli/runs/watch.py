"""The health of a run while it trains: numbers of a batch now and then, and a warning when they go wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metricli.core.collapse import mean_pair_distances, spread
from metricli.core.health import alignment, effective_rank, uniformity
from metricli.specs.kinds import LossSpec
from metricli.specs.train import TrainSpec

MAX_ROWS = 128
"""Rows of a batch that are looked at, the first ones: some 5 ms a look at 384 dimensions, on one core."""
LOOKS, STEPS = 5, 20
"""A bad sign is believed after so many looks in a row that span so many steps."""
EQUAL = 0.01
"""Embeddings are nearly equal below this spread: their cosines are 0.9999 on average."""
FALLEN = 0.1
"""They are so too where the spread has fallen below this share of the largest that the run has seen."""
NEAR = 0.5
"""Positives and negatives nearer than this share of the margin cannot be a margin apart."""
LINE, ROOM = 1.5, 3
"""Embeddings lie on a line below this effective rank, where labels and dimensions have room for more."""
RECOVERING = 1.5
"""Embeddings that have spread by this factor since the first bad sign are leaving a bad start behind."""
UNCHOSEN, LASTING = 0.2, 0.9
"""Proxies are dead if a larger share was nearest to no embedding in an epoch, and as many in the next."""
DRIFT = 0.05
"""A memory bank is not called stale below this drift, a cosine distance, however near the labels are."""


FRESHER = "try a smaller memory.size, a later memory.start_after, or a lower optimizer.lr"


class Sign(NamedTuple):
    """What looks like a collapse in one batch, and a size that grows as the embeddings recover from it."""

    what: str
    size: float


@dataclass
class Streak:
    """Looks in a row that found a sign."""

    looks: int = 0
    first_step: int = 0
    size: float = 0.0

    def add(self, sign: Sign | None, step: int) -> str:
        """Count one look; the steps of the streak in words if it is to be believed by now, else ""."""
        if sign is None:
            self.looks = 0
            return ""
        if self.looks == 0 or sign.size > RECOVERING * self.size:
            self.looks, self.first_step, self.size = 0, step, sign.size
        self.looks += 1
        believed = self.looks >= LOOKS and step - self.first_step >= STEPS
        return f"from step {self.first_step} to step {step}" if believed else ""


class Watch:
    """Looks at what the loss is given, at the end of each log interval, and says each thing once.

    `numbers` are those of the latest look, `warnings` what is still to be said. `collapse` says what is
    wrong and `remedies` what to do; both are empty until the embeddings have collapsed.
    """

    def __init__(self, spec: TrainSpec, loss: nn.Module, labels: Sequence[str]) -> None:
        self.spec, self.loss, self.labels = spec, loss, labels
        self.numbers: dict[str, float] = {}
        self.warnings: list[str] = []
        self.collapse = self.remedies = ""
        self._collapsing, self._stale, self._widest = Streak(), Streak(), 0.0
        self._unchosen, self._said = math.inf, set[str]()

    def look(
        self, step: int, embeddings: Tensor | None, labels: Tensor, values: Mapping[str, float]
    ) -> dict[str, float]:
        """The numbers of a batch (B, D) with labels (B,), after `step` steps, but for those not defined.

        `values` are the loss and the loss's stats. Embeddings that are not finite are passed over.
        """
        if embeddings is None or not bool(torch.isfinite(embeddings[:MAX_ROWS]).all()):
            return {}
        embeddings, labels = embeddings[:MAX_ROWS].detach().cpu(), labels[:MAX_ROWS].cpu()
        found = health_of(embeddings, labels, self.spec)
        self.numbers = {name: value for name, value in found.items() if math.isfinite(value)}
        self._widest = max(self._widest, found["embedding_spread"])
        margin, room = margin_of(self.spec), room_of(embeddings, labels)
        sign = sign_of(found | dict(values), margin=margin, room=room, widest=self._widest)
        if (span := self._collapsing.add(sign, step)) and sign is not None and not self.collapse:
            self.collapse = f"the embeddings have collapsed: {span} {sign.what}"
            self.remedies = "try " + ", or ".join(remedies_of(self.spec))
        stale = stale_sign(embeddings, labels, values)
        if (span := self._stale.add(stale, step)) and stale is not None:
            self._warn("stale", f"the memory bank is stale: {span} {stale.what}; {FRESHER}")
        return self.numbers

    def state(self) -> tuple[dict[str, float], dict[str, str]]:
        """The numbers and words that a resumed run has to know."""
        numbers = {"widest": self._widest, "unchosen": self._unchosen}
        for name, streak in (("collapsing", self._collapsing), ("stale", self._stale)):
            numbers |= {f"{name} {key}": value for key, value in asdict(streak).items()}
        words = {"collapse": self.collapse, "remedies": self.remedies, "said": " ".join(sorted(self._said))}
        return {key: value for key, value in numbers.items() if math.isfinite(value)}, words

    def load_state(self, numbers: Mapping[str, float], words: Mapping[str, str]) -> None:
        """Go on from there; what is missing, as in the file of an older version, is as at the beginning."""

        def number(key: str, otherwise: float = 0.0) -> float:
            value = numbers.get(key, otherwise)
            return value if math.isfinite(value) else otherwise

        def streak(name: str) -> Streak:
            looks, first = int(number(f"{name} looks")), int(number(f"{name} first_step"))
            return Streak(looks, first, number(f"{name} size"))

        self.collapse, self.remedies = words.get("collapse", ""), words.get("remedies", "")
        self._collapsing, self._stale = streak("collapsing"), streak("stale")
        self._widest, self._unchosen = number("widest"), number("unchosen", math.inf)
        self._said = set(words.get("said", "").split())

    def forget_collapse(self) -> None:
        """Give a run that goes on after it was stopped, perhaps with another rate, its time."""
        self.collapse, self.remedies, self._collapsing = "", "", Streak()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.warnings.append(message)

    def end_epoch(self) -> dict[str, float]:
        """The share of labels whose proxies were nearest to no embedding of the epoch; none without proxies.

        Proxies are those of modules of the loss with a buffer `chosen`, the same number for each label, those
        of a label side by side: how often each one was nearest. It is set to 0 for the next epoch.
        """
        found = [getattr(module, "chosen", None) for module in self.loss.modules()]
        counts = [
            count for count in found if torch.is_tensor(count) and count.numel() % len(self.labels) == 0
        ]
        if not any(bool(count.any()) for count in counts):
            return {}
        of_labels = torch.stack([count.reshape(len(self.labels), -1).sum(1).cpu() for count in counts])
        for count in counts:
            count.zero_()
        unchosen = (of_labels == 0).any(0)
        share, before = float(unchosen.double().mean()), self._unchosen
        self._unchosen = share
        if UNCHOSEN < before < math.inf and share > max(UNCHOSEN, LASTING * before):
            self._warn("dead", dead_proxies(unchosen, self.labels, self.spec))
        return {"proxies_unchosen": share}


def health_of(embeddings: Tensor, labels: Tensor, spec: TrainSpec) -> dict[str, float]:
    """Numbers of one batch (B, D) with labels (B,); NaN where one is not defined."""
    positive, negative = mean_pair_distances(embeddings, labels, spec.validation.distance)
    return {
        "positive_distance": positive,
        "negative_distance": negative,
        "embedding_norm": float(embeddings.double().norm(dim=1).mean()),
        "embedding_spread": spread(embeddings),
        "effective_rank": effective_rank(embeddings),
        "alignment": alignment(embeddings, labels),
        "uniformity": uniformity(embeddings),
    }


def sign_of(values: Mapping[str, float], *, margin: float | None, room: int, widest: float) -> Sign | None:
    """Whether the numbers of one batch look like a collapse.

    Args:
        values: those of `health_of`, the loss, and the loss's own distances where it states some.
        margin: of the loss, in these distances; None for none.
        room: dimensions that the batch could fill.
        widest: the largest spread so far.
    """
    wide, rank = values["embedding_spread"], values["effective_rank"]
    size = wide * values["embedding_norm"]
    if room < 1:
        return None
    if wide < max(EQUAL, FALLEN * widest):
        return Sign(f"all of a batch were nearly equal (embedding_spread {wide:.2g})", size)
    near, far = values["positive_distance"], values["negative_distance"]
    loss = values["loss"] - values.get("memory_loss", 0.0)
    if margin and max(near, far) < NEAR * margin and abs(loss - margin) < NEAR * margin:
        what = (
            f"positives and negatives were nearer than half the margin {margin:g} ({near:.2g} and {far:.2g})"
        )
        return Sign(f"{what} and the loss stood near it ({loss:.2g})", size)
    if rank < LINE and room >= ROOM:
        return Sign(f"all of a batch lay on one line (effective_rank {rank:.2f})", rank)
    return None


def stale_sign(embeddings: Tensor, labels: Tensor, values: Mapping[str, float]) -> Sign | None:
    """Whether positives of a memory bank in use are farther from a batch than the batch's own negatives."""
    in_use = (name for name in values if name.endswith("memory_drift"))
    drifts = [values[name] for name in in_use if values.get(name.removesuffix("drift") + "loss", 0.0) > 0]
    if not drifts or max(drifts) <= DRIFT:
        return None
    positive, negative = mean_pair_distances(embeddings, labels, "cosine")
    drift, gap = max(drifts), negative - positive
    if not drift > gap:
        return None
    what = f"its images of a label were {drift:.2g} farther (cosine distance) than those of the batch"
    return Sign(f"{what}, whose other labels are {gap:.2g} farther", 0.0)


def room_of(embeddings: Tensor, labels: Tensor) -> int:
    """Dimensions in which a batch (B, D) of labels that are well apart would differ."""
    return min(embeddings.shape[1], len(set(labels.tolist())) - 1)


def losses_of(spec: TrainSpec) -> list[LossSpec]:
    """Every loss of a spec."""
    return [loss for _, loss in spec.losses]


def margin_of(spec: TrainSpec) -> float | None:
    """The margin of a loss that compares images, None for others and for several losses."""
    found = losses_of(spec)
    margin = getattr(found[0], "margin", None)
    return margin if len(found) == 1 and found[0].needs_positives and isinstance(margin, float) else None


def remedies_of(spec: TrainSpec) -> list[str]:
    """What may help against a collapse, as far as it applies to this spec; the losses' own words first."""
    found = [remedy for loss in losses_of(spec) for remedy in loss.remedies(spec)]
    found.append(f"a lower optimizer.lr than {spec.optimizer.lr:g}")
    if getattr(spec.scheduler, "warmup_epochs", None) == 0:
        warmed = spec.scheduler.model_copy(update={"warmup_epochs": 1.0})
        if not warmed.check(spec, None):
            found.append("scheduler.warmup_epochs: 1")
    return found


def dead_proxies(unchosen: Tensor, labels: Sequence[str], spec: TrainSpec) -> str:
    """The warning about the labels whose proxies are dead: those that are true in `unchosen` (L,)."""
    dead = [repr(labels[i]) for i in unchosen.nonzero().flatten().tolist()]
    named = ", ".join(dead[:3]) + ", ..." * (len(dead) > 3)
    options = spec.optimizer
    rate = options.loss_lr or options.head_lr or options.lr
    return (
        f"the proxies of {len(dead)} of {len(labels)} labels ({named}) were nearest to no embedding for two "
        "epochs, so these labels are hardly learnt; proxies and embeddings move at unequal paces: try a "
        f"higher optimizer.loss_lr than {rate:g}, or a lower optimizer.lr than {options.lr:g}"
    )
