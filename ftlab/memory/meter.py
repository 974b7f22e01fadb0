"""GPU memory measured by phase."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from ftlab.fast.plan import GIB

KINDS = ("allocated", "reserved", "nvml")


class Meter:
    """The peak memory of each phase in GiB: memory of tensors (allocated), memory that torch took from the driver
    (reserved), and what the driver reports for this process (NVML; sampled, includes the CUDA context).

    Phases can be nested: an evaluation during training does not count towards training's peak. Without a GPU all
    readings are empty.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, dict[str, float]] = {}
        self._active: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count memory towards the phase `name` until the block ends."""
        self._fold()
        self._active.append(name)
        try:
            yield
        finally:
            self._fold()
            self._active.pop()

    def metrics(self) -> dict[str, float]:
        """Return the current phase's peaks by metric key; empty without a GPU."""
        self._fold()
        peaks = self.peaks.get(self._active[-1], {}) if self._active else {}
        keys = {
            "allocated": "vram/peak_allocated_gib",
            "reserved": "vram/peak_reserved_gib",
            "nvml": "vram/nvml_gib",
        }
        return {keys[kind]: value for kind, value in peaks.items()}

    def _fold(self) -> None:
        """Merge the peaks since the last reset into the current phase, and reset them."""
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
    """Return the memory that the driver reports for this process, in GiB. If it does not distinguish processes, as in
    most containers, this is the memory of the whole GPU. Without nvidia-ml-py it is 0."""
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
