"""What a plugin's spec check may know of a table; imports neither pandas nor numpy."""

from __future__ import annotations

from dataclasses import dataclass


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
