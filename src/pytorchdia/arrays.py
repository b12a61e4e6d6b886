"""The array types of the package, with their axes and units: a glossary in code.

Axes always run y before x (rows before columns), pixel centres lie at integers and the centre of
the lower left pixel is (0, 0). A mask is True where a pixel is to be ignored. Images are in the
target's own counting unit, called ADU throughout.

============  ==============  =====================================================================
type          shape           meaning
============  ==============  =====================================================================
``Image``     ``(h, w)``      counts [ADU], a variance [ADU^2], or a weight per pixel
``Mask``      ``(h, w)``      True = ignore this pixel
``Flags``     ``(h, w)``      bit plane, see :class:`pytorchdia.frame.Flag`
``Kernel``    ``(ky, kx)``    K_lm of eq 2, element ``[n_y + l, n_x + m]``, odd sizes
``Params``    ``(p,)``        theta = (kernel coefficients, background coefficients)
``Matrix``    ``(p, p)``      a normal matrix, a Hessian or a covariance
``Basis``     ``(n, r)``      images as columns, one row for each kernel pixel
``Scalar``    ``()``          one number as a tensor
``Pixels``    any             values that are treated one by one, whatever their shape
``Tiled``     list            an image as the chunks of tiles in which it is worked on
============  ==============  =====================================================================

A stack has its axes before those of the table: ``(..., h, w)``.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Image = Float[Tensor, "*#stack h w"]
Mask = Bool[Tensor, "*#stack h w"]
Flags = Int[Tensor, "*#stack h w"]
Kernel = Float[Tensor, "*#stack ky kx"]
Params = Float[Tensor, "*#stack _"]
Matrix = Float[Tensor, "*#stack p p"]
Basis = Float[Tensor, "*#stack _ _"]
Scalar = Float[Tensor, "*#stack"]
Pixels = Float[Tensor, "*shape"]
Tiled = list[Tensor]

__all__ = [
    "Basis", "Flags", "Image", "Kernel", "Mask", "Matrix", "Params", "Pixels", "Scalar", "Tiled",
]  # fmt: skip
