"""The engine: a frozen body's forward pass, as fast as this machine allows without changing the results.

OpenVINO runs it on a CPU, PyTorch on a GPU. Batch norms are folded into the convolutions before them, and bfloat16 is used if
the hardware supports it natively. The parameters, the backbone and the hardware decide all this, never a timing or the length
of the job. Each batch is padded to one fixed shape and computed by one thread, so that an image's activations are the
same bit for bit whatever else is in its batch, on any number of cores.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from headstart.core.errors import InputError
from headstart.hardware import choose_precision, resolve_workers
from headstart.images.loader import alone
from headstart.images.preprocessing import Preprocessing, normalise
from headstart.models.folding import fold_batch_norms
from headstart.runtime import to_device

MAX_ERROR = 0.063  # relative error of bfloat16 against float32; corresponds to a cosine of 0.998
MAX_STORAGE_ERROR = 1e-3  # relative error of float16 against the computed activations
HEADROOM = 8.0  # least ratio of float16's range to the largest activation of the probe
PROBES = 4
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """The choice of how activations are computed and stored, and its reason.

    Args:
        engine: "openvino" or "torch".
        precision: of the computation, "float32" or "bfloat16".
        storage: type of the stored activations, "float16" or "float32".
        batch_size: the fixed batch size.
        device: "cpu", "cuda" or "mps".
        reason: why this precision was chosen, in words.
        probe_error: relative error of the engine against PyTorch in float32 on `probe_images`.
    """

    engine: str
    precision: str
    storage: str
    batch_size: int
    device: str
    reason: str
    probe_error: float


class Engine:
    """A fast version of a frozen body. It maps uint8 images to float32 activations; see `build_engine`."""

    def __init__(self, forward: Forward, plan: Plan) -> None:
        self.plan = plan
        self._forward = forward

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the activations of up to `batch_size` images.

        Args:
            images: [n, 3, s, s] uint8, n at most the batch size.

        Returns:
            [n, ...] float32 on the CPU; each row is the same bit for bit whatever the other rows are.
        """
        n, size = len(images), self.plan.batch_size
        if n > size:
            raise ValueError(f"{n} images are more than the batch size {size}")
        return self._forward(padded(images, size))[:n]


def padded(images: torch.Tensor, size: int) -> torch.Tensor:
    """Add black images up to `size` images in all."""
    missing = size - len(images)
    return torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images


def build_engine(
    body: nn.Module,
    preprocessing: Preprocessing,
    *,
    engine: str,
    precision: str,
    storage: str,
    batch_size: int,
    device: torch.device,
    workers: int | Literal["auto"] = "auto",
) -> Engine:
    """Build the engine for a body, by parameters, hardware and measured fidelity.

    `precision: auto` chooses bfloat16 if the hardware supports it natively and its relative error on `probe_images` is at
    most 6.3 %. `storage: auto` chooses float16 if it stores those activations to 0.1 % and its range leaves room.

    Args:
        body: images [n, 3, s, s] float32 to activations [n, ...], in eval mode; not changed.
        engine: "auto", "openvino" or "torch".
        precision: "auto", "float32" or "bfloat16".
        storage: "auto", "float32" or "float16".
        workers: the largest number of threads that call the engine at once. They share a GPU; on a CPU each computes alone.
            The number does not change any bit of the activations.

    Raises:
        InputError: the engine does not support this device or body.
    """
    engine = plan_engine(engine, device)
    probes = probe_images(preprocessing.image_size, PROBES)
    with torch.inference_mode():
        plain = body(normalise(probes, preprocessing)).float()
    folded, _ = fold_batch_norms(body, normalise(probes[:2], preprocessing))
    compiler = {"openvino": openvino_forward, "torch": torch_forward}[engine](
        folded, preprocessing, batch_size, device, resolve_workers(workers)
    )

    def attempt(chosen: str) -> tuple[Forward, torch.Tensor, float]:
        forward = compiler(chosen)
        parts = probes.split(batch_size)
        found = alone(lambda: torch.cat([forward(padded(part, batch_size))[: len(part)] for part in parts]))
        return forward, found, relative_error(found, plain)

    wanted, reason = choose_precision(precision, device)
    forward, found, error = attempt(wanted)
    if precision == "auto" and wanted == "bfloat16" and not error <= MAX_ERROR:
        wanted, reason = "float32", f"bfloat16 has an error of {error:.1%} on the probe images"
        forward, found, error = attempt(wanted)
    kept = plan_storage(found) if storage == "auto" else storage
    return Engine(forward, Plan(engine, wanted, kept, batch_size, device.type, reason, error))


def plan_engine(wanted: str, device: torch.device) -> str:
    """Choose OpenVINO on a CPU and PyTorch elsewhere, unless `wanted` names an engine.

    Raises:
        InputError: `wanted` is OpenVINO, and the device is not a CPU.
    """
    if wanted == "auto":
        return "openvino" if device.type == "cpu" else "torch"
    if wanted == "openvino" and device.type != "cpu":
        raise InputError(
            f"precompute.engine: openvino, and runtime.device is {device.type}",
            wanted="openvino on a CPU, torch on any device",
            fix="--set precompute.engine=auto",
        )
    return wanted


def plan_storage(activations: torch.Tensor) -> str:
    """Choose "float16" if it stores such activations to 0.1 % with room to spare, else "float32"."""
    held = activations.half().float()
    fits = float(activations.abs().max()) * HEADROOM <= torch.finfo(torch.float16).max
    return "float16" if fits and relative_error(held, activations) <= MAX_STORAGE_ERROR else "float32"


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of `wanted`; 0 if both are zero."""
    difference, norm = float((found - wanted).double().norm()), float(wanted.double().norm())
    return difference / norm if norm else (0.0 if difference == 0 else math.inf)


def probe_images(size: int, count: int) -> torch.Tensor:
    """Generate pictures [count, 3, s, s] uint8, always the same: soft shapes with some noise."""
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(count, 3, 7, 7, generator=generator)
    noise = torch.rand(count, 3, size, size, generator=generator)
    smooth = nn.functional.interpolate(soft, size=(size, size), mode="bicubic")
    return (255 * (0.9 * smooth + 0.1 * noise)).clamp(0, 255).to(torch.uint8)


class _FromBytes(nn.Module):
    """A body that takes uint8 images and normalises them on its own device."""

    def __init__(self, body: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.body = body
        self.preprocessing = preprocessing

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.body(normalise(images, self.preprocessing))
        return x


def openvino_forward(
    body: nn.Module, preprocessing: Preprocessing, batch_size: int, device: torch.device, streams: int
) -> Callable[[str], Forward]:
    """Return a function from a precision to a forward pass with OpenVINO: one thread per call, any number of calls at once.

    Raises:
        InputError: OpenVINO cannot convert the body.
    """
    openvino, core = openvino_core()
    shape = (batch_size, 3, preprocessing.image_size, preprocessing.image_size)
    example = torch.zeros(shape, dtype=torch.uint8)
    whole = _FromBytes(body, preprocessing).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that its tracing is deprecated
            # By default OpenVINO traces twice to compare; guard.py has proved that already, and it takes a second.
            traced = torch.jit.freeze(torch.jit.trace(whole, example, check_trace=False))
            with _root_logger_kept():
                model = openvino.convert_model(traced, example_input=example, input=list(shape))
    except _conversion_failures() as error:
        why = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"precompute.engine: OpenVINO cannot run this backbone: {' '.join(why[-1:])[:200]}",
            fix="--set precompute.engine=torch",
        ) from None

    def compiled(precision: str) -> Forward:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,  # one thread a stream
            "ENABLE_CPU_PINNING": False,
        }
        network = core.compile_model(model, "CPU", settings)
        local = threading.local()

        def forward(images: torch.Tensor) -> torch.Tensor:
            if not hasattr(local, "request"):
                local.request = network.create_infer_request()
            local.request.infer([images.contiguous().numpy()], share_inputs=True)
            return torch.from_numpy(np.array(local.request.get_output_tensor().data, dtype=np.float32))

        return forward

    return compiled


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Restore the root logger after a conversion.

    OpenVINO lets only errors through meanwhile. A failed conversion leaves it so, and every library's warnings would be lost.
    """
    root = logging.getLogger()
    before = (root.level, list(root.filters), list(root.handlers))
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.filters[:], root.handlers[:] = before[1], before[2]


@functools.cache
def openvino_core() -> tuple[Any, Any]:
    """Return OpenVINO and its core, one per process.

    Each core sets this thread's signal stack. Deleting two cores in the order of their creation leaves a freed stack behind,
    and the next signal would end the process.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report every import
    import openvino

    return openvino, openvino.Core()


def _conversion_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that OpenVINO raises on a body it cannot convert; its own ones have no common base class."""
    from openvino import frontend

    names = ("GeneralFailure", "InitializationFailure", "NotImplementedFailure", "OpConversionFailure", "OpValidationFailure")
    return (RuntimeError, ValueError, TypeError, AttributeError, *(getattr(frontend, name) for name in names))


def torch_forward(
    body: nn.Module, preprocessing: Preprocessing, batch_size: int, device: torch.device, streams: int
) -> Callable[[str], Forward]:
    """Return a function from a precision to a forward pass with PyTorch, channels-last.

    On CUDA each calling thread has its own stream and waits only for that, so that one thread's transfers and another's
    decoding overlap with the computation.
    """
    whole = to_device(_FromBytes(body, preprocessing).eval(), device)
    local = threading.local()

    def compiled(precision: str) -> Forward:
        @torch.inference_mode()
        def forward(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return whole(images.to(device, non_blocking=True)).float()

        def on_cuda(images: torch.Tensor) -> torch.Tensor:
            if not hasattr(local, "stream"):
                local.stream = torch.cuda.Stream(device)
            with torch.cuda.stream(local.stream):
                result = forward(images.pin_memory())
                found = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                found.copy_(result, non_blocking=True)
            local.stream.synchronize()
            return found

        return on_cuda if device.type == "cuda" else lambda images: forward(images).cpu()

    return compiled


def fidelity(engine: Engine, body: nn.Module, preprocessing: Preprocessing, images: torch.Tensor) -> dict[str, float]:
    """Compare the engine with the body in PyTorch and float32 on a sample.

    Args:
        images: [n, 3, s, s] uint8, n at most the batch size.

    Returns:
        `cosine_min` over the rows, `max_error` and `max_value` over all activations.
    """
    with torch.inference_mode():
        plain = body(normalise(images, preprocessing)).float().flatten(1)
    fast = engine(images).flatten(1)
    cosine = torch.cosine_similarity(fast.double(), plain.double())
    return {
        "cosine_min": float(torch.where(plain.any(1), cosine, 1.0).min()),  # a row of zeros has no direction
        "max_error": float((fast - plain).abs().max()),
        "max_value": float(plain.abs().max()),
    }
