"""Losses: modules from (embeddings, labels) to a scalar, with `stats` of their last call."""

from metricli.components.losses.adacos import AdaCosLoss
from metricli.components.losses.arcface import ArcFaceLoss
from metricli.components.losses.circle import CircleLoss
from metricli.components.losses.contrastive import ContrastiveLoss
from metricli.components.losses.cosface import CosFaceLoss
from metricli.components.losses.fast_ap import FastAPLoss
from metricli.components.losses.lifted_structure import LiftedStructureLoss
from metricli.components.losses.memory import MemoryLoss
from metricli.components.losses.multi_similarity import MultiSimilarityLoss
from metricli.components.losses.n_pairs import NPairsLoss
from metricli.components.losses.normalized_softmax import NormalizedSoftmaxLoss
from metricli.components.losses.nt_xent import NTXentLoss
from metricli.components.losses.proxy_anchor import ProxyAnchorLoss
from metricli.components.losses.proxy_nca import ProxyNCALoss
from metricli.components.losses.recall_at_k import RecallAtKLoss
from metricli.components.losses.smooth_ap import SmoothAPLoss
from metricli.components.losses.soft_triple import SoftTripleLoss
from metricli.components.losses.sub_center_arcface import SubCenterArcFaceLoss
from metricli.components.losses.supcon import SupConLoss
from metricli.components.losses.surrogate_precision import SurrogatePrecisionLoss
from metricli.components.losses.triplet import TripletLoss
from metricli.components.losses.weighted import WeightedSum

__all__ = [
    "AdaCosLoss",
    "ArcFaceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "FastAPLoss",
    "LiftedStructureLoss",
    "MemoryLoss",
    "MultiSimilarityLoss",
    "NormalizedSoftmaxLoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RecallAtKLoss",
    "SmoothAPLoss",
    "SoftTripleLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "SurrogatePrecisionLoss",
    "TripletLoss",
    "WeightedSum",
]
