"""What NVML, the driver's own library, says of the GPU that a model runs on."""

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from kvstore.closing import Closing

_log = logging.getLogger(__name__)

_KB = (
    1024  # NVML gives PCIe rates in "KB/s" and does not say which; its header speaks of a granularity of 1KB
)


class GpuFigures(Closing):
    """Figures of one GPU, whoever uses it. What the card, its driver or this user's rights do not give is None.

    Any thread may read them.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`nvml`: the module pynvml, initialised once for this object, which shuts it down once.

        `handle`: what it knows the card by.
        """
        self._nvml, self._handle = nvml, handle
        self._closed = False

    def read(self) -> dict[str, Any] | None:
        """All figures as of now (docs/architecture.md, "Figures"); None after `close`. Never raises.

        Blocks for the 20 ms in which NVML counts what crosses the bus.
        """
        if self._closed:
            return None
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo)
        utilization = self._ask(nvml.nvmlDeviceGetUtilizationRates)
        return {
            "name": self._ask(nvml.nvmlDeviceGetName),
            "driver": self._ask(lambda _: nvml.nvmlSystemGetDriverVersion()),
            "memory_used_bytes": None if memory is None else memory.used,
            "memory_total_bytes": None if memory is None else memory.total,
            "utilization_percent": None if utilization is None else utilization.gpu,
            "pcie": self._pcie(),
            "power_w": _watts(self._ask(nvml.nvmlDeviceGetPowerUsage)),
            "power_limit_w": _watts(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit)),
            "temperature_c": self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        }

    def _pcie(self) -> dict[str, int | None]:
        nvml = self._nvml
        read, written = self._rates()
        return {
            "generation": self._ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
            "max_generation": self._ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
            "width": self._ask(nvml.nvmlDeviceGetCurrPcieLinkWidth),
            "max_width": self._ask(nvml.nvmlDeviceGetMaxPcieLinkWidth),
            "read_bytes_per_s": read,
            "written_bytes_per_s": written,
        }

    def _rates(self) -> tuple[int | None, int | None]:
        """What the card receives and what it sends, in bytes a second over the same 20 ms."""
        # each call sleeps for its 20 ms; NVML may be called from several threads at once
        try:
            with ThreadPoolExecutor(max_workers=1) as beside:
                sent = beside.submit(self._rate, self._nvml.NVML_PCIE_UTIL_TX_BYTES)
                received = self._rate(self._nvml.NVML_PCIE_UTIL_RX_BYTES)
                return received, sent.result()
        except RuntimeError:  # the interpreter ends: no thread begins any more
            return None, None

    def _rate(self, counter: int) -> int | None:
        rate = self._ask(self._nvml.nvmlDeviceGetPcieThroughput, counter)
        return None if rate is None else rate * _KB

    def _ask(self, question: Callable[..., Any], *more: int) -> Any:
        try:
            return question(self._handle, *more)
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            _shut_down(self._nvml)


def figures_of(device: torch.device) -> GpuFigures | None:
    """The figures of the GPU that torch computes on as `device`; None for a CPU, and as `figures_by_uuid`."""
    if device.type != "cuda":
        return None
    # not by index: NVML counts all cards, torch those that CUDA_VISIBLE_DEVICES names, in an order of its own
    return figures_by_uuid(str(torch.cuda.get_device_properties(device).uuid))


def figures_by_uuid(uuid: str, nvml: Any = None) -> GpuFigures | None:
    """The figures of the GPU with this UUID, as torch writes it: 36 characters, without NVML's prefix.

    None, and a line in the debug log, without nvidia-ml-py or a driver, and for a part of a card (MIG), which NVML knows
    by a UUID of another kind. `nvml` stands in for the module pynvml.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError as error:
            _log.debug("no figures of the GPU: %s", error)
            return None
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        _log.debug("no figures of the GPU: %s", error)
        return None
    try:
        return GpuFigures(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except nvml.NVMLError as error:
        _log.debug("no figures of the GPU %s: %s", uuid, error, extra={"gpu": uuid, "error": error})
        _shut_down(nvml)
        return None


def card_in_words(figures: dict[str, Any] | None) -> str:
    """The card's name and the fastest link that it can have where it is, as " (NAME, PCIe 5 x16)"; "" without figures."""
    if figures is None:
        return ""
    # the best, as a link that idles is slower
    generation, width = figures["pcie"]["max_generation"], figures["pcie"]["max_width"]
    link = [f"PCIe {generation}", *([f"x{width}"] if width is not None else [])]
    words = [figures["name"], " ".join(link) if generation is not None else None]
    said = ", ".join(word for word in words if word is not None)
    return f" ({said})" if said else ""


def _shut_down(nvml: Any) -> None:
    with contextlib.suppress(nvml.NVMLError):  # a driver that has gone meanwhile
        nvml.nvmlShutdown()


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
