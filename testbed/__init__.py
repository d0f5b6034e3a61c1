"""A small cluster of network namespaces with real traffic: for the demo, tests and benchmarks."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the project."""
