"""Published data sets, as they come from their archives, turned into tables."""

from __future__ import annotations

from metricli.data.converting.convert import DATA_SETS, ConvertReport, convert

__all__ = ["DATA_SETS", "ConvertReport", "convert"]
