"""A finding of `doctor`, printed as one line."""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Line:
    """One finding. `fail` marks a problem for every run, `warn` a problem for some runs."""

    mark: Mark
    name: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.mark:<5} {self.name:<16} {self.text}" + (f" -> {self.remedy}" if self.remedy else "")
