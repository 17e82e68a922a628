"""A small client of the distribution API: the only place that speaks HTTP."""

from exporter.distribution.client import Client

__all__ = ["Client"]
