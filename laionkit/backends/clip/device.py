"""Where a model runs and in which precision."""

import math
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from laionkit.core.errors import ConfigError

DEVICES = ("auto", "cuda", "mps", "cpu")


class Precision(StrEnum):
    """The number type of a model's weights and activations; normalisation is fp32 always."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """Torch's name for it."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.value]


def choose_device(wanted: str) -> torch.device:
    """The device meant; ``auto`` takes a GPU where there is one. Raises ConfigError."""
    kind = wanted.partition(":")[0]
    if kind not in DEVICES:
        raise ConfigError(f"device={wanted!r}: one of {', '.join(DEVICES)}")
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(kind for kind, there in has.items() if there))
    if not has[kind]:
        raise ConfigError(f"device={wanted!r}: torch finds none on this machine; use --device cpu")
    return torch.device(wanted)


def device_count(device: torch.device) -> int:
    """How many devices of this kind there are: that many processes share the work."""
    if device.type == "cuda" and device.index is None:
        return torch.cuda.device_count()
    return 1


class Transfers:
    """Rows to a device and back, copied while a GPU computes what came before or comes after."""

    def __init__(self, device: torch.device) -> None:
        """Serve one device."""
        self._device = device
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of this machine on the device; they may be overwritten when this returns."""
        if self._copying is None:
            return rows.to(self._device)
        pinned = rows.contiguous().pin_memory()
        with torch.cuda.stream(self._copying):
            there = pinned.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        there.record_stream(computing)
        return there

    def bring_home(self, parts: Sequence[torch.Tensor]) -> Callable[[], NDArray[Any]]:
        """Begin to copy a device's rows to this machine; what is returned waits for them.

        The copy takes its place behind what the GPU has been given so far, so that waiting for it
        in another thread does not wait for what it is given afterwards.
        """
        if self._copying is None:
            return lambda: torch.cat(list(parts)).cpu().numpy()
        rows = sum(len(part) for part in parts)
        home = torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
        at = 0
        for part in parts:
            home[at : at + len(part)].copy_(part, non_blocking=True)
            at += len(part)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self._device))

        def wait() -> NDArray[Any]:
            copied.synchronize()
            return home.numpy()

        return wait


class Utilization:
    """The share of the last moments that a GPU computed, asked for once a second at most.

    torch asks NVIDIA's driver through the package nvidia-ml-py (``pip install laionkit[gpu]``);
    part of a card (MIG) has no such number.
    """

    def __init__(self, device: torch.device) -> None:
        """Watch a device; of one that is no CUDA GPU nobody can tell."""
        self._device, self._asked_at = device, -math.inf
        self._tells = device.type == "cuda"
        self._share: float | None = None

    def share(self) -> float | None:
        """0 to 1; None where nobody can tell."""
        if self._tells and time.monotonic() - self._asked_at >= 1:
            self._asked_at = time.monotonic()
            try:
                self._share = torch.cuda.utilization(self._device) / 100
            # NVIDIA's package has errors of its own, which cannot be named where it is missing.
            except Exception:  # noqa: BLE001 - a number for the eye must not stop a run
                self._tells, self._share = False, None
        return self._share


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """The precision meant; ``auto`` is bf16 where the device computes it faster than fp32."""
    if wanted != "auto":
        try:
            precision = Precision(wanted)
        except ValueError as error:
            raise ConfigError(f"precision={wanted!r}: auto, fp32, bf16 or fp16") from error
        if precision is Precision.FP16 and device.type == "cpu":
            raise ConfigError("precision='fp16' is for GPUs: use bf16 or fp32 on the CPU")
        return precision
    return Precision.BF16 if has_fast_bf16(device) else Precision.FP32


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether a device computes bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Instruction sets of the CPU, as Linux lists them; empty elsewhere (bf16 is not chosen)."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return set()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
