"""Experiments: seeds, tables, verdicts, curves, and toy models that are trained once."""
