"""GPU memory measured phase by phase."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from ftlab.fast.plan import GIB

KINDS = ("allocated", "reserved", "nvml")


class Meter:
    """Peak memory of each phase in GiB: what tensors held (allocated), what torch took from the driver
    (reserved), and what the driver counts for this process (NVML, sampled, includes the CUDA context).

    Phases nest: an evaluation inside training does not count towards training's peak. Without a GPU every
    reading is empty.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, dict[str, float]] = {}
        self._active: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count towards `name` until the block ends."""
        self._fold()
        self._active.append(name)
        try:
            yield
        finally:
            self._fold()
            self._active.pop()

    def metrics(self) -> dict[str, float]:
        """The running phase's peaks under the tracker's keys; empty without a GPU."""
        self._fold()
        peaks = self.peaks.get(self._active[-1], {}) if self._active else {}
        keys = {
            "allocated": "vram/peak_allocated_gib",
            "reserved": "vram/peak_reserved_gib",
            "nvml": "vram/nvml_gib",
        }
        return {keys[kind]: value for kind, value in peaks.items()}

    def _fold(self) -> None:
        """Add the peaks since the last reset to the running phase, and reset."""
        if self.device.type != "cuda":
            return
        if self._active:
            peaks = self.peaks.setdefault(self._active[-1], dict.fromkeys(KINDS, 0.0))
            now = {
                "allocated": torch.cuda.max_memory_allocated(self.device) / GIB,
                "reserved": torch.cuda.max_memory_reserved(self.device) / GIB,
                "nvml": nvml_gib(self.device),
            }
            for kind in KINDS:
                peaks[kind] = max(peaks[kind], now[kind])
        torch.cuda.reset_peak_memory_stats(self.device)


def nvml_gib(device: torch.device) -> float:
    """What the driver counts for this process, or for the whole GPU where it does not tell processes apart
    (inside most containers); 0 without nvidia-ml-py."""
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return float(process.usedGpuMemory) / GIB
        return float(pynvml.nvmlDeviceGetMemoryInfo(handle).used) / GIB
    return 0.0
