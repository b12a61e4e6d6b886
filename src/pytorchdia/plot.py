"""One picture of a subtraction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .product import check_writable, replacing
from .subtraction import with_error

if TYPE_CHECKING:
    from .frame import Frame
    from .subtraction import Subtraction

__all__ = ["draw", "save"]

_SIGMAS = 5.0  # colour range of the difference, and twice that of the histogram


def save(
    result: Subtraction, target: Frame, reference: Frame, path: Path, overwrite: bool = False
) -> Path:
    """Draw ``result`` into the PNG file ``path``, whole or not at all.

    Raises
    ------
    WriteError
        The file exists and ``overwrite`` is False, or it cannot be written.
    """
    check_writable(path, overwrite)
    with replacing(path) as partial:
        draw(result, target, reference).savefig(partial, format="png", dpi=110)
    return path


def draw(result: Subtraction, target: Frame, reference: Frame) -> Figure:
    """Reference, target, difference in sigma, kernel, and histogram of the residuals."""
    figure = Figure(figsize=(13.5, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["reference", "target", "difference"], ["kernel", "histogram", "text"]],
        width_ratios=[1, 1, 1.07],
    )
    _counts(figure, panels["reference"], reference, "Reference R")
    _counts(figure, panels["target"], target, "Target I")
    _difference(figure, panels["difference"], result)
    _kernel(figure, panels["kernel"], result)
    _histogram(panels["histogram"], result)
    _text(panels["text"], result)
    return figure


def _counts(figure: Figure, axes: Any, frame: Frame, title: str) -> None:
    data, bad = frame.data.numpy(), frame.mask.numpy()
    good = data[~bad] if (~bad).any() else data
    low, high = np.percentile(good, [1.0, 99.5])
    shown = np.ma.masked_array(data, (frame.flags.numpy() & 1) != 0)
    image = axes.imshow(shown, origin="lower", cmap=_with_bad("gray"), vmin=low, vmax=high,
                        interpolation="nearest")  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.85, label=frame.unit or "ADU", extend="both")
    axes.set(title=title, xlabel="x [pixels]", ylabel="y [pixels]")


def _difference(figure: Figure, axes: Any, result: Subtraction) -> None:
    shown = np.ma.masked_array(result.significance, ~np.isfinite(result.variance))
    image = axes.imshow(shown, origin="lower", cmap=_with_bad("RdBu_r"), vmin=-_SIGMAS,
                        vmax=_SIGMAS, interpolation="nearest")  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.85, label="D / sigma", extend="both")
    axes.set(title="Difference in sigma (grey: no data)", xlabel="x [pixels]", ylabel="y [pixels]")


def _kernel(figure: Figure, axes: Any, result: Subtraction) -> None:
    n_y, n_x = (s // 2 for s in result.kernel.shape)
    limit = float(np.abs(result.kernel).max()) or 1.0
    extent = (-n_x - 0.5, n_x + 0.5, -n_y - 0.5, n_y + 0.5)
    image = axes.imshow(result.kernel, origin="lower", cmap="PuOr_r", vmin=-limit, vmax=limit,
                        extent=extent, interpolation="nearest")  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.85, label="K")
    axes.set(
        title=f"Kernel, P = {with_error(result.scale, result.scale_error)}",
        xlabel="m (along x)",
        ylabel="l (along y)",
    )


def _histogram(axes: Any, result: Subtraction) -> None:
    values = np.clip(result.significance[~result.mask], -2 * _SIGMAS, 2 * _SIGMAS)
    edges = np.linspace(-2 * _SIGMAS, 2 * _SIGMAS, 101)
    axes.hist(values, edges, color="#4477aa", label=f"{values.size} pixels used")
    width = edges[1] - edges[0]
    normal = values.size * width * np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi)
    axes.plot(edges, normal, color="#cc3311", label="normal distribution")
    axes.set(
        title="Residuals of the fitted pixels (ends: beyond)",
        xlabel="D / sigma",
        ylabel="pixels",
        yscale="log",
        ylim=(0.5, None),
    )
    axes.legend(loc="upper right", fontsize="small")


def _text(axes: Any, result: Subtraction) -> None:
    d, b = result.diagnostics, result.background
    lines = [
        f"target       {result.settings['target']}",
        f"reference    {result.settings['reference']}",
        f"status       {result.status.name.lower()}, {d.steps} steps",
        f"P            {with_error(result.scale, result.scale_error)}",
        f"B_0          {with_error(b.coefficients[0], b.errors[0])}",
        f"kernel       {result.kernel.shape[0]} x {result.kernel.shape[1]}",
        f"pixels used  {d.n_pixels}",
        f"chi2 / dof   {d.reduced_chi_square:.3f}",
        f"sky scale    {d.residual_scale:.3f}",
        "",
    ]
    lines += [f"! {f.code}" for f in result.findings if f.level == "warning"]
    axes.axis("off")
    text = axes.text(0.0, 1.0, "\n".join(lines), va="top", family="monospace", fontsize=9)
    text.set_in_layout(False)  # a long file name must not squeeze the pictures


def _with_bad(name: str) -> Any:
    return colormaps[name].with_extremes(bad="#bbbbbb")
