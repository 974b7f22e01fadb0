"""GPU memory: measured during a run, and estimated before it."""
