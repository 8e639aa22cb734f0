"""Postprocessors: callables from Rankings to Rankings, with `notes` on what their last call had to say."""

from metricli.components.postprocessors.expansion import DatabaseAugmentation, PCAWhitening, QueryExpansion
from metricli.components.postprocessors.k_reciprocal import KReciprocal
from metricli.components.postprocessors.pairwise import PairwiseReranker
from metricli.components.postprocessors.program import load_program
from metricli.components.postprocessors.thresholds import AdaptiveThreshold, ConstantThreshold

__all__ = [
    "AdaptiveThreshold",
    "ConstantThreshold",
    "DatabaseAugmentation",
    "KReciprocal",
    "PCAWhitening",
    "PairwiseReranker",
    "QueryExpansion",
    "load_program",
]
