"""Sweeps: a space of configurations, a study that stores every trial, and workers that pull trials from it.

Only the modules of this package import Optuna, and only once a sweep starts.
"""
