"""Sweeps: a space of configurations, a study that remembers every trial, workers that pull trials from it.

Optuna is imported by the modules of this package only, and only once a sweep starts.
"""
