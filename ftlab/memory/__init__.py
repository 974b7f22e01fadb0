"""GPU memory: measured while a run goes on, and forecast before it."""
