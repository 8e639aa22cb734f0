"""What a plugin's spec check may know of a table; imports neither pandas nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TableFacts:
    """Counts of a table, of its `train` rows unless named otherwise; made by `Table.facts`.

    Validation rows are those of the split that is judged: `validate --split` may name another.
    """

    rows: int
    """Rows of every split."""
    train_rows: int
    train_labels: int
    validation_rows: int
    train_categories: int
    """Distinct categories; 0 without a category column or values."""
    instances_min: int
    """Fewest rows of a label; 0 without train rows, as the median and the maximum."""
    instances_median: float
    instances_max: int
    labels_with_one_instance: int
    labels_in_two_categories: list[str]
    """The first 10 labels with more than one category, in table order."""
    uncategorised_labels: int
    """Labels with at least one row lacking a category."""
    queries_in_gallery: int = 0
    """Validation rows that are both query and gallery."""
    labels_of_size: Mapping[int, int] = field(default_factory=dict)
    """Rows of a label -> how many labels have so many."""
    smallest_labels: list[str] = field(default_factory=list)
    """The 3 labels with the fewest rows, the fewest first; in table order where they have as many."""

    def labels_below(self, instances: int) -> int:
        """How many labels have fewer rows than that."""
        return sum(labels for size, labels in self.labels_of_size.items() if size < instances)
