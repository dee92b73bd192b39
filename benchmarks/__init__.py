"""Benchmarks: `python -m benchmarks [NAME ...]`; what they measured is in README.md."""
