"""Compare methods on data sets over seeds: the grid, its parallel and resumable run, and its tables."""

from exmap.bench.grid import Bench, Cell, bench_names, load_bench, plan
from exmap.bench.run import run_bench
from exmap.methods import parse_method

__all__ = ["Bench", "Cell", "bench_names", "load_bench", "parse_method", "plan", "run_bench"]
