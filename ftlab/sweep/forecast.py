"""Memory that a trial would take: the closed form, corrected by what trials of the same study took."""

from ftlab import vram
from ftlab.composition import load_tree, typed_from_tree
from ftlab.config import ExperimentConfig
from ftlab.errors import FtlabError
from ftlab.run_dir import RunDir
from ftlab.sweep.study import Study
from ftlab.sweep.worker import peak_of


class Forecast:
    """Estimates GiB for configurations of a study; each finished trial is read once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.measured: dict[int, tuple[vram.Estimate, float]] = {}

    def __call__(self, cfg: ExperimentConfig) -> float:
        """GiB that training would allocate at its peak."""
        for row in self.study.leaderboard():
            if row.state == "complete" and row.number not in self.measured:
                folder = RunDir(row.folder)
                peak = peak_of(folder.summary)
                try:
                    before = typed_from_tree(load_tree(folder / "config.yaml")) if peak else None
                except (OSError, FtlabError):  # a folder that was tidied away teaches nothing
                    before = None
                if before:
                    self.measured[row.number] = (vram.parts(before), peak)
        return vram.estimate(cfg, list(self.measured.values()))
