"""Run rival image-subtraction packages on a pair in memory and time them.

Meant for the interpreter of a rivals' environment (README.md); it does not use pytorchdia. The
parent writes one JSON object per line to stdin and reads one JSON object per line from stdout:

``{"load": "pair.npz", "kernel": 19}`` -> ``{"ok": true, "shape": [h, w], ...}``
    The file holds float64 ``reference`` and ``target`` (h, w), and scalars ``read_noise`` [ADU],
    ``gain`` [e-/ADU], ``saturation`` [ADU] and, if known, ``phi_k`` [pixels]. ``kernel`` is the odd
    side of the kernel [pixels].
``{"run": "sfft", "save": null}`` -> ``{"seconds": 1.2, "peak_rss_mb": 900.0, ...}``
    ``seconds`` covers what each pair costs: the solution and the difference image. Imports and
    steps that depend on the shape alone (sfft compiles its functions) are in ``setup_seconds``.
    ``cpu_seconds`` is the time of all threads: where it is far below the number of threads times
    ``seconds`` of a rival that keeps them busy, something else had the cores.
    ``peak_rss_mb`` is the highest resident memory of this process during the timed part, and
    ``rss_before_mb`` what it held just before. With ``"save": "out.npz"`` the file gets
    ``difference`` and, where the rival has one, ``kernel`` in the orientation
    M[i, j] = sum K[l, m] R[i + l, j + m]. ``reconstruction_error`` is then the largest
    |target - M - background - difference| away from the edges, in the unit of the target.
    ``"limit_mb"`` refuses runs that are expected to need more memory than that, in place of
    what the machine has left.
``{"list": true}`` -> ``{"rivals": {"sfft": {"ok": true, "version": "1.7.3"}, ...}}``
``{"threads": 2}`` -> what the environment says; it changes nothing.

The parent sets OMP_NUM_THREADS before the start. Anything that goes wrong is answered as
``{"error": "..."}``. What a rival prints goes to stderr.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
"""Threads that a rival may use."""

MB = 1e6


@dataclass(frozen=True)
class Pair:
    """An image pair in memory.

    Attributes
    ----------
    reference, target : ndarray
        Images [ADU], (h, w), C order.
    read_noise : float
        [ADU].
    gain : float
        [e-/ADU]; no rival here uses the noise model (README.md).
    saturation : float
        [ADU]; no rival is given a mask (README.md), so it only goes into the answer to "load".
    side : int
        Odd side of the kernel [pixels].
    phi_k : float
        True width of the kernel [pixels] for those that are to be told; NaN if it is not known.
    """

    reference: FloatArray
    target: FloatArray
    read_noise: float
    gain: float
    saturation: float
    side: int
    phi_k: float = float("nan")

    @property
    def half(self) -> int:
        """Half-width of the kernel [pixels]."""
        return self.side // 2


@dataclass(frozen=True)
class Result:
    """What a rival found.

    Attributes
    ----------
    difference : ndarray
        (h, w), in the unit of the target unless the rival says otherwise.
    kernel : ndarray or None
        (side, side) with M[i, j] = sum K[l, m] R[i + l, j + m].
    background : float or None
        Differential background [ADU], the same everywhere.
    """

    difference: FloatArray
    kernel: FloatArray | None = None
    background: float | None = None


class Rival:
    """One package with one choice of settings."""

    distribution: ClassVar[str]
    module: ClassVar[str]
    unit: ClassVar[str] = "adu"

    def setup(self, pair: Pair) -> None:
        """Do what depends on the shape alone; it is not timed."""

    def solve(self, pair: Pair) -> Any:
        """The timed part: the solution and the difference image, as the package returns them."""
        raise NotImplementedError

    def result(self, raw: Any, pair: Pair) -> Result:
        """The package's output in the worker's terms; it is not timed."""
        raise NotImplementedError

    def memory(self, pair: Pair) -> float:
        """Expected need of the timed part [bytes]."""
        raise NotImplementedError


class Sfft(Rival):
    """sfft: delta basis, solved and subtracted in Fourier space, Numpy backend.

    The elemental call solves and subtracts in one pass; the general call of the packets does the
    same work in two, because it takes the solution from a masked copy of the pair.
    """

    distribution = "sfft"
    module = "sfft.sfftcore.SFFTSubtract"

    def __init__(self) -> None:
        self._configs: dict[tuple[int, int, int], Any] = {}

    def setup(self, pair: Pair) -> None:
        from sfft.sfftcore.SFFTConfigure import SingleSFFTConfigure

        importlib.import_module("pyfftw")
        h, w = pair.target.shape
        if (h, w, pair.half) in self._configs:
            return
        self._configs[h, w, pair.half] = SingleSFFTConfigure.SSC(
            NX=h,
            NY=w,
            KerHW=pair.half,
            KerPolyOrder=0,
            BGPolyOrder=0,
            ConstPhotRatio=True,
            BACKEND_4SUBTRACT="Numpy",
            NUM_CPU_THREADS_4SUBTRACT=THREADS,
            NUMBA_CACHE=False,
            VERBOSE_LEVEL=0,
        )

    def solve(self, pair: Pair) -> Any:
        from sfft.sfftcore.SFFTSubtract import ElementalSFFTSubtract

        h, w = pair.target.shape
        return ElementalSFFTSubtract.ESS(
            PixA_I=pair.reference,
            PixA_J=pair.target,
            SFFTConfig=self._configs[h, w, pair.half],
            SFFTSolution=None,
            Subtract=True,
            BACKEND_4SUBTRACT="Numpy",
            NUM_CPU_THREADS_4SUBTRACT=THREADS,
            VERBOSE_LEVEL=0,
        )

    def result(self, raw: Any, pair: Pair) -> Result:
        from sfft.utils.SFFTSolutionReader import Realize_MatchingKernel

        solution, difference = raw
        h, w = pair.target.shape
        # The kernel is the same everywhere, so any position will do. It is a convolution kernel.
        kernel = Realize_MatchingKernel(np.array([[0.5 * h, 0.5 * w]])).FromArray(
            Solution=solution, N0=h, N1=w, L0=pair.side, L1=pair.side, DK=0, Fpq=1
        )[0]
        return Result(np.ascontiguousarray(difference), kernel[::-1, ::-1], float(solution[-1]))

    def memory(self, pair: Pair) -> float:
        return (2 * pair.side * 16.0 + 400.0) * pair.target.size


class Ois(Rival):
    """ois: delta basis with a flat background (``method="Bramich"``, NumPy)."""

    distribution = "ois"
    module = "ois"

    def options(self) -> dict[str, Any]:
        return {"method": "Bramich", "bkgdegree": 0}

    def solve(self, pair: Pair) -> Any:
        import ois

        return ois.optimal_system(
            pair.target, pair.reference, kernelshape=(pair.side, pair.side), **self.options()
        )

    def result(self, raw: Any, pair: Pair) -> Result:
        difference, _, kernel, background = raw
        if kernel.ndim == 3:
            kernel = kernel[:, :, 0]
        return Result(difference, kernel[::-1, ::-1], float(np.mean(background)))

    def memory(self, pair: Pair) -> float:
        return 8.0 * (pair.side**2 + 8) * pair.target.size


class OisAdaptive(Ois):
    """ois: delta basis, the same everywhere, in C (``method="AdaptiveBramich"``).

    It takes a background of degree 1: with 0 it fits none, since it reads 0 as "off".
    """

    module = "varconv"

    def options(self) -> dict[str, Any]:
        return {"method": "AdaptiveBramich", "bkgdegree": 1, "poly_degree": 0}

    def result(self, raw: Any, pair: Pair) -> Result:
        # The background is a plane, so there is no single level to report.
        found = super().result(raw, pair)
        return Result(found.difference, found.kernel, None)


class OisAlardLupton(Ois):
    """ois: one Gaussian times a polynomial of degree 6, 28 terms (``method="Alard-Lupton"``).

    With several Gaussians, version 0.2 assembles a wrong kernel from the coefficients it found.
    """

    def options(self) -> dict[str, Any]:
        return {
            "method": "Alard-Lupton",
            "bkgdegree": 0,
            "gausslist": [{"sx": 1.5, "sy": 1.5, "modPolyDeg": 6}],
        }

    def memory(self, pair: Pair) -> float:
        return 300.0 * pair.target.size


class CuPhoton(Rival):
    """cuphoton's xPois: three Gaussians times polynomials, 22 terms, on the CPU.

    It could weight pixels by a variance image; weights taken from the noisy target moved the
    background by 0.05 of the noise and gained nothing, so it runs with its default of none.
    """

    distribution = "cuphoton"
    module = "cuphoton.xpois"

    def widths(self, pair: Pair) -> tuple[float, float, float]:
        """Standard deviations of the Gaussians [pixels]."""
        return 0.7, 1.5, 3.0

    def setup(self, pair: Pair) -> None:
        # The package imports this one at its first convolution.
        importlib.import_module("scipy.signal")

    def solve(self, pair: Pair) -> Any:
        from cuphoton.xpois import GaussianBasisComponent, solve_constant_kernel

        return solve_constant_kernel(
            pair.reference,
            pair.target,
            [
                GaussianBasisComponent(sigma=sigma, degree=degree)
                for sigma, degree in zip(self.widths(pair), (3, 2, 2), strict=True)
            ],
            kernel_shape=(pair.side, pair.side),
            background_degree=0,
            backend="cpu",
        )

    def result(self, raw: Any, pair: Pair) -> Result:
        return Result(raw.residual, raw.kernel[::-1, ::-1], float(np.mean(raw.background)))

    def memory(self, pair: Pair) -> float:
        return 100.0 * pair.target.size


class CuPhotonTold(CuPhoton):
    """cuphoton told the width of the kernel: Gaussians of 0.5, 1 and 2 of it (Israel et al. 2007).

    None is narrower than 0.5 pixels: below that its samples no longer tell one from another.
    """

    def widths(self, pair: Pair) -> tuple[float, float, float]:
        if not pair.phi_k > 0:
            raise ValueError("the pair does not say the width of its kernel")
        narrow = max(0.5, 0.5 * pair.phi_k)
        return narrow, max(pair.phi_k, 1.5 * narrow), max(2.0 * pair.phi_k, 3.0 * narrow)


class ProperImage(Rival):
    """properimage: ZOGY with a fitted Gaussian PSF; another method, for context only.

    The difference is in units of its own noise, and there is no kernel.
    """

    distribution = "properimage"
    module = "properimage.operations"
    unit = "sigma"
    shift: ClassVar[bool] = True

    def setup(self, pair: Pair) -> None:
        # The package crops 100 pixels off each side before it looks for the shift.
        if self.shift and min(pair.target.shape) <= 200:
            raise ValueError("the fit of the shift needs images of more than 200 x 200 pixels")

    def solve(self, pair: Pair) -> Any:
        from properimage.operations import subtract

        return subtract(
            ref=pair.reference, new=pair.target, align=False, beta=True, shift=self.shift
        )

    def result(self, raw: Any, pair: Pair) -> Result:
        return Result(np.ascontiguousarray(raw[0].real))

    def memory(self, pair: Pair) -> float:
        return 500.0 * pair.target.size


class ProperImageNoShift(ProperImage):
    """properimage without the fit of a sub-pixel shift, its faster setting."""

    shift = False


RIVALS: dict[str, Rival] = {
    "sfft": Sfft(),
    "ois": Ois(),
    "ois-adaptive": OisAdaptive(),
    "ois-alard-lupton": OisAlardLupton(),
    "cuphoton": CuPhoton(),
    "cuphoton-told": CuPhotonTold(),
    "properimage": ProperImage(),
    "properimage-noshift": ProperImageNoShift(),
}


def status_mb(field: str) -> float:
    """A memory field of this process, VmRSS or VmHWM [MB]."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MB
    raise KeyError(field)


def available_mb() -> float:
    """Memory that the machine has left [MB]."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / MB
    return float("inf")


def reset_peak() -> float:
    """Restart the count of the peak, and return what is held now [MB].

    Freed memory that the allocator keeps stays with it: to give it back would make the next run
    pay for new pages, which a user with many pairs does not.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")


def reconstruction_error(pair: Pair, found: Result) -> float | None:
    """Largest |target - K (x) R - background - difference| away from the edges [ADU]."""
    if found.kernel is None or found.background is None:
        return None
    from scipy.signal import fftconvolve

    model = fftconvolve(pair.reference, found.kernel[::-1, ::-1], mode="same") + found.background
    inside = (slice(pair.half, -pair.half),) * 2
    return float(np.abs(pair.target - model - found.difference)[inside].max())


class Worker:
    """Holds the pair and answers requests."""

    def __init__(self) -> None:
        self.pair: Pair | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; it raises for requests that cannot be met."""
        if "load" in request:
            return self.load(request["load"], int(request.get("kernel", 19)))
        if "run" in request:
            return self.run(request["run"], request.get("save"), request.get("limit_mb"))
        if "list" in request:
            return {"rivals": {name: describe(rival) for name, rival in RIVALS.items()}}
        if "threads" in request:
            names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY")
            return {
                "ok": int(request["threads"]) == THREADS,
                "threads": THREADS,
                "environment": {name: os.environ.get(name) for name in names},
            }
        raise ValueError("expected one of: load, run, list, threads")

    def load(self, path: str, side: int) -> dict[str, Any]:
        """Read a pair."""
        if side < 1 or side % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, got {side}")
        with np.load(path, allow_pickle=False) as data:
            reference, target = (
                np.ascontiguousarray(data[name], dtype=np.float64)
                for name in ("reference", "target")
            )
            scalars = {name: float(data[name]) for name in ("read_noise", "gain", "saturation")}
            if "phi_k" in data:
                scalars["phi_k"] = float(data["phi_k"])
        if reference.ndim != 2 or reference.shape != target.shape:
            raise ValueError(f"shapes {reference.shape} and {target.shape} do not make a pair")
        for image in (reference, target):
            image.flags.writeable = False
        self.pair = Pair(reference, target, side=side, **scalars)
        saturated = (reference >= scalars["saturation"]) | (target >= scalars["saturation"])
        return {
            "ok": True,
            "shape": list(target.shape),
            "saturated_pixels": int(np.count_nonzero(saturated)),
        }

    def run(self, name: str, save: str | None, limit_mb: float | None) -> dict[str, Any]:
        """Time one rival on the loaded pair."""
        if name not in RIVALS:
            raise ValueError(f"no rival {name!r}; there are {', '.join(RIVALS)}")
        if self.pair is None:
            raise ValueError("load a pair first")
        pair, rival = self.pair, RIVALS[name]
        started = time.perf_counter()
        importlib.import_module(rival.module)
        need = rival.memory(pair) / MB
        limit = available_mb() if limit_mb is None else float(limit_mb)
        if need > limit:
            raise MemoryError(f"{name} would need about {need:.0f} MB of {limit:.0f} MB")
        rival.setup(pair)
        setup = time.perf_counter() - started

        before = reset_peak()
        started, cpu_started = time.perf_counter(), time.process_time()
        raw = rival.solve(pair)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        peak = status_mb("VmHWM")

        reply: dict[str, Any] = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "peak_rss_mb": peak,
            "rss_before_mb": before,
            "setup_seconds": setup,
            "unit": rival.unit,
        }
        if save is not None:
            found = rival.result(raw, pair)
            arrays: dict[str, Any] = {"difference": found.difference}
            if found.kernel is not None:
                arrays["kernel"] = found.kernel
            np.savez(save, **arrays)
            reply["reconstruction_error"] = reconstruction_error(pair, found)
        return reply


def describe(rival: Rival) -> dict[str, Any]:
    """Whether a rival can be imported, and its version."""
    try:
        importlib.import_module(rival.module)
        return {"ok": True, "version": metadata.version(rival.distribution)}
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the stream ends."""
    worker = Worker()
    for line in requests:
        if not line.strip():
            continue
        try:
            reply = worker.answer(json.loads(line))
        except (Exception, SystemExit) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Keep stdout for the protocol, and serve."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Threads of OpenMP that spin between loops steal the cores from those of BLAS and FFTW:
    # sfft takes two to three times as long on a 142 x 142 pair.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("NUMBA_NUM_THREADS", str(THREADS))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        serve(sys.stdin, replies)
    finally:
        # properimage makes this folder when it is imported, and leaves it.
        scratch = getattr(sys.modules.get("properimage.single_image"), "TEMP_DIR", None)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
