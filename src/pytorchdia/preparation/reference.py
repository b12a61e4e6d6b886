"""The reference of a season: its sharpest good frames, registered and combined."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..errors import Finding, InputError, RegistrationError
from ..frame import Frame
from .combining import combine
from .quality import FrameQuality, Limits, grade
from .register import find_transform
from .resample import apply_registration
from .star_detection import detect_stars

__all__ = ["choose_reference_frames", "combine", "make_reference"]


def choose_reference_frames(
    qualities: Sequence[FrameQuality],
    limits: Limits = Limits(),
    *,
    n_frames: int = 8,
    max_widening: float = 1.25,
) -> list[int]:
    """Indices of the frames to combine, the sharpest first.

    All have the size that most good frames have (of two the larger): a FWHM in pixels of a binned
    frame would look sharper than it is.

    Parameters
    ----------
    qualities : sequence of FrameQuality
    limits : Limits
        Frames that break one are left out.
    n_frames : int
        Largest number of frames.
    max_widening : float
        A frame wider than so many times the sharpest is left out. So is one whose sky is more than
        3 times as noisy per second as is usual, or whose stars are trailed (ellipticity above 0.4)
        or dimmed (transparency below 0.7 of the usual), if others are left.

    Raises
    ------
    InputError
        No frame is good enough; the message gives the reasons.
    """
    grades = grade(qualities, limits)
    good = [i for i, g in enumerate(grades) if g.accepted and qualities[i].fwhm is not None]
    if not good:
        reasons = "; ".join(dict.fromkeys(g.reason for g in grades if g.reason)) or "no frames"
        raise InputError(f"No frame is good enough for a reference: {reasons}")
    sizes = Counter(qualities[i].shape for i in good)
    size = max(sizes, key=lambda shape: (sizes[shape], math.prod(shape)))
    good = [i for i in good if qualities[i].shape == size]
    strict = replace(limits, max_noise_ratio=3.0, max_ellipticity=0.4, min_transparency=0.7,
                     min_star_share=0.5, max_masked=0.2)  # fmt: skip
    better = [i for i, g in enumerate(grade(qualities, strict)) if g.accepted and i in good]
    ranked = sorted(better or good, key=lambda i: (qualities[i].fwhm, i))
    sharpest = qualities[ranked[0]].fwhm
    assert sharpest is not None
    kept = [i for i in ranked if (qualities[i].fwhm or math.inf) <= max_widening * sharpest]
    return kept[:n_frames]


def make_reference(frames: Sequence[Frame], *, name: str = "reference") -> Frame:
    """Register frames onto the first one to a fraction of a pixel, and :func:`combine` them.

    Unlike targets, these frames are resampled wherever a whole-pixel shift is not exact: half a
    pixel would widen the stars of the mean. A frame that cannot be registered is left out, with a
    finding.

    Parameters
    ----------
    frames : sequence of Frame
        The sharpest first (:func:`choose_reference_frames`); its grid is that of the reference.
    name : str
        Of the result.
    """
    if not frames:
        raise InputError("There are no frames to make a reference of; give at least one.")
    first, stars = frames[0], detect_stars(frames[0])
    registered, findings = [first], []
    for frame in frames[1:]:
        try:
            registration = find_transform(frame, first, onto_stars=stars)
        except RegistrationError as error:
            findings.append(
                Finding("reference-frame-left-out", f"Not in the reference: {error}", "warning")
            )
            continue
        registered.append(
            apply_registration(frame, registration.exact(first.shape), first.shape, first.wcs)
        )
    combined = combine(registered, name=name)
    resampled = [
        f.name for f in registered[1:] if any(x.code == "noise-correlated" for x in f.findings)
    ]
    if resampled:
        findings.append(
            Finding(
                "reference-resampled",
                f"{len(resampled)} of {len(registered)} frames of {name} were resampled by cubic "
                "splines; the noise of neighbouring pixels is correlated in their share.",
            )
        )
    return replace(combined, findings=(*combined.findings, *findings))
