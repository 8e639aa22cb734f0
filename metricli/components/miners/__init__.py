"""Miners: modules that choose the triplets or pairs of a batch which a loss is computed on."""

from metricli.components.miners.all_triplets import AllTriplets
from metricli.components.miners.hard_triplets import HardTriplets

__all__ = ["AllTriplets", "HardTriplets"]
