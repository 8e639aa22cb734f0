"""Miners: modules that choose the triplets or pairs of a batch which a loss is computed on."""

from metricli.components.miners.all_triplets import AllTriplets
from metricli.components.miners.distance_weighted import DistanceWeighted
from metricli.components.miners.easy_positive import EasyPositive
from metricli.components.miners.hard_cluster import HardCluster
from metricli.components.miners.hard_triplets import HardTriplets
from metricli.components.miners.n_hard import NHard
from metricli.components.miners.semi_hard import SemiHard

__all__ = [
    "AllTriplets",
    "DistanceWeighted",
    "EasyPositive",
    "HardCluster",
    "HardTriplets",
    "NHard",
    "SemiHard",
]
