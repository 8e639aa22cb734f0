"""Losses: modules from (embeddings, labels) to a scalar, with `stats` of their last call."""

from metricli.components.losses.arcface import ArcFaceLoss
from metricli.components.losses.triplet import TripletLoss

__all__ = ["ArcFaceLoss", "TripletLoss"]
