"""Explain a split shard by shard: in this process, or by the workers of a Ray cluster that come and go."""

from exmap.engine.engine import Engine, LocalEngine, engine_of
from exmap.engine.job import Job, Shard, shards_of

__all__ = ["Engine", "Job", "LocalEngine", "Shard", "engine_of", "shards_of"]
