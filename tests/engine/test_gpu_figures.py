"""What NVML says reaches `stats()` in plain units, and what it does not say is None, each by itself."""

import ast
import inspect
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from engine import gpu_figures
from engine.engine import Engine
from engine.gpu_figures import GpuFigures, figures_by_uuid, figures_of
from tests.engine.engines import engine_on

UUID = "01234567-89ab-cdef-0123-456789abcdef"
HANDLE = object()
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


class Card:
    """pynvml over one card that exists on paper: its names, its units and its errors."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_PCIE_UTIL_TX_BYTES = pynvml.NVML_PCIE_UTIL_TX_BYTES
    NVML_PCIE_UTIL_RX_BYTES = pynvml.NVML_PCIE_UTIL_RX_BYTES

    def __init__(self, **failing: Exception) -> None:
        """`failing`: functions that raise, by name."""
        self.failing = failing
        self.num_initialised = 0
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetName": "NVIDIA Paper 100",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, free=50 << 30, used=30 << 30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=42, memory=7),
            "nvmlDeviceGetCurrPcieLinkGeneration": 1,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetPowerUsage": 123_456,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        }

    def __getattr__(self, name: str) -> Any:
        if name not in self.answers:
            raise AttributeError(name)

        def ask(handle: object) -> Any:
            self.fail_if_told(name)
            assert handle is HANDLE
            return self.answers[name]

        return ask

    def fail_if_told(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]
        assert self.num_initialised or name == "nvmlInit", "asked before nvmlInit or after nvmlShutdown"

    def nvmlInit(self) -> None:
        self.fail_if_told("nvmlInit")
        self.num_initialised += 1

    def nvmlShutdown(self) -> None:
        self.fail_if_told("nvmlShutdown")
        self.num_initialised -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self.fail_if_told("nvmlSystemGetDriverVersion")
        return "999.88.77"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        if uuid != f"GPU-{UUID}":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return HANDLE

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:
        self.fail_if_told("nvmlDeviceGetTemperature")
        assert (handle, sensor) == (HANDLE, pynvml.NVML_TEMPERATURE_GPU)
        return 61

    def nvmlDeviceGetPcieThroughput(self, handle: object, counter: int) -> int:
        self.fail_if_told("nvmlDeviceGetPcieThroughput")
        assert handle is HANDLE
        return {pynvml.NVML_PCIE_UTIL_TX_BYTES: 3, pynvml.NVML_PCIE_UTIL_RX_BYTES: 5}[counter]


EXPECTED = {
    "name": "NVIDIA Paper 100",
    "driver": "999.88.77",
    "memory_used_bytes": 30 << 30,
    "memory_total_bytes": 80 << 30,
    "utilization_percent": 42,
    "pcie": {
        "generation": 1,
        "max_generation": 5,
        "width": 8,
        "max_width": 16,
        "read_bytes_per_s": 5 * 1024,
        "written_bytes_per_s": 3 * 1024,
    },
    "power_w": 123.456,
    "power_limit_w": 700.0,
    "temperature_c": 61,
}


def opened(card: Card) -> GpuFigures:
    figures = figures_by_uuid(UUID, card)
    assert figures is not None
    return figures


def without(*absent: str, pcie: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is expected, with some figures None."""
    told = {**EXPECTED, "pcie": {**EXPECTED["pcie"], **dict.fromkeys(pcie)}}
    return {**told, **dict.fromkeys(absent)}


def test_every_figure_in_its_unit():
    assert opened(Card()).read() == EXPECTED


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("nvmlDeviceGetName", without("name")),
        ("nvmlSystemGetDriverVersion", without("driver")),
        ("nvmlDeviceGetMemoryInfo", without("memory_used_bytes", "memory_total_bytes")),
        ("nvmlDeviceGetUtilizationRates", without("utilization_percent")),
        ("nvmlDeviceGetCurrPcieLinkGeneration", without(pcie=("generation",))),
        ("nvmlDeviceGetMaxPcieLinkGeneration", without(pcie=("max_generation",))),
        ("nvmlDeviceGetCurrPcieLinkWidth", without(pcie=("width",))),
        ("nvmlDeviceGetMaxPcieLinkWidth", without(pcie=("max_width",))),
        ("nvmlDeviceGetPcieThroughput", without(pcie=("read_bytes_per_s", "written_bytes_per_s"))),
        ("nvmlDeviceGetPowerUsage", without("power_w")),
        ("nvmlDeviceGetEnforcedPowerLimit", without("power_limit_w")),
        ("nvmlDeviceGetTemperature", without("temperature_c")),
    ],
)
def test_what_the_card_does_not_support_is_none_by_itself(function, expected):
    assert opened(Card(**{function: NOT_SUPPORTED})).read() == expected


def test_both_directions_are_counted_at_the_same_time():
    """Each call waits here until the other is under way as well."""
    card = Card()
    both = threading.Barrier(2, timeout=60)
    one_by_one = card.nvmlDeviceGetPcieThroughput

    def together(handle: object, counter: int) -> int:
        both.wait()
        return one_by_one(handle, counter)

    card.nvmlDeviceGetPcieThroughput = together  # type: ignore[method-assign]
    assert opened(card).read() == EXPECTED


def test_while_the_interpreter_ends_there_are_no_rates(monkeypatch):
    """No thread can be begun then."""

    def submit(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    assert opened(Card()).read() == without(pcie=("read_bytes_per_s", "written_bytes_per_s"))


def test_it_is_shut_down_as_often_as_it_was_initialised():
    card = Card()
    with opened(card) as one, opened(card) as other:
        assert card.num_initialised == 2
        one.close()
        one.close()
        assert (one.read(), other.read(), card.num_initialised) == (None, EXPECTED, 1)
    assert card.num_initialised == 0


def test_a_card_that_nvml_does_not_know_has_no_figures(caplog):
    """Such as a part of one: its UUID is not a card's."""
    card = Card()
    with caplog.at_level(logging.DEBUG, "engine.gpu_figures"):
        assert figures_by_uuid("f" * 36, card) is None
    assert card.num_initialised == 0
    assert [(record.levelname, "Not Found" in record.message) for record in caplog.records] == [
        ("DEBUG", True)
    ]


def test_without_a_driver_there_are_no_figures(caplog):
    card = Card(nvmlInit=pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    with caplog.at_level(logging.DEBUG, "engine.gpu_figures"):
        assert figures_by_uuid(UUID, card) is None
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_without_the_package_there_are_no_figures(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.DEBUG, "engine.gpu_figures"):
        assert figures_by_uuid(UUID) is None
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_driver_that_goes_costs_nothing_but_the_figures():
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    card = Card(nvmlShutdown=lost)
    figures = opened(card)
    card.failing |= dict.fromkeys([*card.answers, "nvmlSystemGetDriverVersion"], lost)
    card.failing |= dict.fromkeys(["nvmlDeviceGetTemperature", "nvmlDeviceGetPcieThroughput"], lost)
    assert figures.read() == {**dict.fromkeys(EXPECTED), "pcie": dict.fromkeys(EXPECTED["pcie"])}
    figures.close()


def test_the_real_module_has_all_that_is_used():
    """The stand-in could have names that pynvml does not."""
    tree = ast.parse(inspect.getsource(gpu_figures))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.lower().startswith("nvml")
    }
    assert {"nvmlInit", "NVMLError", "nvmlDeviceGetPcieThroughput", "NVML_TEMPERATURE_GPU"} <= used
    assert sorted(name for name in used if not hasattr(pynvml, name)) == []
    fields = {name for name, *_ in pynvml.c_nvmlMemory_t._fields_ + pynvml.c_nvmlUtilization_t._fields_}
    assert {"used", "total", "gpu"} <= fields


def test_a_model_on_the_cpu_has_no_gpu(tiny_llama_dir):
    assert figures_of(torch.device("cpu")) is None
    with engine_on(tiny_llama_dir, device="cpu") as engine:
        assert engine.stats()["gpu"] is None


def test_an_engine_shows_the_figures_until_it_is_closed(tiny_llama_dir, monkeypatch):
    """With a card on paper; tests/gpu finds a real one."""
    card = Card()
    monkeypatch.setattr("engine.engine.figures_of", lambda _: figures_by_uuid(UUID, card))
    said: list[str] = []
    with Engine(tiny_llama_dir, announce=said.append) as engine:
        assert engine.stats()["gpu"] == EXPECTED
        assert "cpu (NVIDIA Paper 100, PCIe 5 x16), computes in float32" in said[0]
    assert card.num_initialised == 0
    assert engine.stats()["gpu"] is None


@pytest.mark.parametrize(
    ("function", "card"),
    [
        ("nvmlDeviceGetName", " (PCIe 5 x16)"),
        ("nvmlDeviceGetMaxPcieLinkWidth", " (NVIDIA Paper 100, PCIe 5)"),
        ("nvmlDeviceGetMaxPcieLinkGeneration", " (NVIDIA Paper 100)"),
    ],
)
def test_facts_leave_out_what_is_not_known(function, card):
    assert gpu_figures.card_in_words(opened(Card(**{function: NOT_SUPPORTED})).read()) == card


def test_facts_without_figures_say_nothing():
    assert gpu_figures.card_in_words(None) == ""
