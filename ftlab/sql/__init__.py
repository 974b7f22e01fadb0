"""Scores of SQL answers. Needs neither torch nor Hydra and can be used alone.

`exact_string` is the strict score. Its meaning is fixed: both texts equal, character by character, once
runs of ASCII white space outside quotes are one blank, the ends are stripped and trailing semicolons gone.
"""

from ftlab.sql.intervals import wilson
from ftlab.sql.strict import exact_string

__all__ = ["exact_string", "wilson"]
