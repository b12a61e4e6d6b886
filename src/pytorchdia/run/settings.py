"""The settings of a season's reduction: a TOML file, checked key by key."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from ..config import LikelihoodName, PriorName, make_likelihood, make_penalty, parse_kernel_size
from ..errors import InputError, ReadError

__all__ = ["Settings", "describe_settings", "load_settings"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class RunSettings(_Section):
    """Where results go."""

    folder: str = Field("run", description="Folder of the results, from this file's folder.")
    keep_registered: bool = Field(
        False, description="Also write each frame as it lies on the reference's grid."
    )


class FrameSettings(_Section):
    """Which frames."""

    files: tuple[str, ...] = Field(
        ("*.fits", "*.fit", "*.fts", "*.fits.gz", "*.fits.fz", "*.FITS", "*.FIT", "*.FTS"),
        description="Names or patterns of the frames, from this file's folder.",
        min_length=1,
    )
    exclude: tuple[str, ...] = Field((), description="Names or patterns of files to leave out.")
    filter: str | None = Field(
        None, description="Use frames of this filter only; all frames if absent."
    )
    hdu: int | str | None = Field(
        None, description="Number or name of the HDU; the first image if absent."
    )
    mask: str | None = Field(
        None,
        description="Image of bad pixels (not 0 or NaN; of a mask of bits, those that count), for "
        "all frames.",
    )
    flat: str | None = Field(
        None, description="Master flat-field the frames were divided by, for the noise (eq 6)."
    )
    bad_lines: bool = Field(
        True,
        description="Mask columns and rows of the detector that differ from their neighbours.",
    )

    @field_validator("files", "exclude", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CameraSettings(_Section):
    """Numbers that hold for all frames, in place of what headers say."""

    gain: Positive | None = Field(None, description="e-/ADU; from the headers if absent.")
    read_noise: NotNegative | None = Field(None, description="e-; from the headers if absent.")
    saturation: Annotated[float, Field(gt=0)] | None = Field(
        None, description="ADU; from the headers, or a plateau in the image, if absent."
    )


class TimeSettings(_Section):
    """A header keyword that holds the time."""

    keyword: str = Field(..., description="Name of the keyword.")
    when: Literal["start", "mid", "end"] = Field(
        "start", description="The moment of the exposure that it names."
    )
    clock: str = Field("", description="Keyword of the time of day, beside one for the date.")
    scale: str = Field("", description="Time scale, such as tdb; TIMESYS or UTC if absent.")
    barycentric: bool = Field(False, description="Whether it is a BJD or HJD.")


class KeywordSettings(_Section):
    """Header keywords to look up before those that the package knows."""

    gain: tuple[str, ...] = Field((), description="Keywords of the gain.")
    read_noise: tuple[str, ...] = Field((), description="Keywords of the read noise.")
    saturation: tuple[str, ...] = Field((), description="Keywords of the saturation level.")
    exposure: tuple[str, ...] = Field((), description="Keywords of the exposure time.")
    filter: tuple[str, ...] = Field((), description="Keywords of the filter.")
    time: TimeSettings | None = Field(
        None,
        description="Keyword of the time, a table with the keys keyword, when (start, mid or end), "
        "clock, scale and barycentric; the known keywords if absent.",
    )
    mask: tuple[str, ...] = Field((), description="EXTNAMEs of HDUs that hold a frame's mask.")
    variance: tuple[str, ...] = Field(
        (), description="EXTNAMEs of HDUs that hold a frame's variance [ADU^2]."
    )
    mask_bits: tuple[Annotated[int, Field(ge=0, le=62)], ...] = Field(
        (),
        description="Bits, from 0 on, that make a pixel bad in a frame's mask and in frames.mask; "
        "those that its header tells, or any, if absent.",
    )

    @field_validator("time", mode="before")
    @classmethod
    def _a_word_is_a_keyword(cls, value: Any) -> Any:
        return {"keyword": value} if isinstance(value, str) else value


class QualitySettings(_Section):
    """Limits beyond which a frame is rejected; inf, or 0 for a lower limit, switches one off."""

    max_masked: Share = Field(0.6, description="Share of bad pixels.")
    min_stars: Annotated[int, Field(ge=0)] = Field(3, description="Stars found.")
    min_star_share: Share = Field(0.1, description="Stars found, of the season's median.")
    max_fwhm: Limit = Field(math.inf, description="Width of the stars [pixels].")
    max_fwhm_ratio: Limit = Field(3.0, description="Width of the stars, of the season's median.")
    max_ellipticity: Limit = Field(0.6, description="Ellipticity of the stars, 1 - b/a.")
    max_noise_ratio: Limit = Field(
        10.0, description="Noise of the sky per second, of the season's median."
    )
    max_sky_range: Limit = Field(
        math.inf, description="Unevenness of the sky, as a share of its level."
    )
    min_transparency: Share = Field(
        0.2, description="Light of the stars per second, of the season's median."
    )
    need_time: bool = Field(True, description="Reject frames that do not say when they were taken.")


class RegisterSettings(_Section):
    """How frames are laid onto the reference's grid."""

    onto: str | None = Field(
        None, description="Name of the frame whose grid is used; the best one if absent."
    )
    max_shift: Positive | None = Field(
        None, description="Largest shift to look for [pixels]; any if absent."
    )


class ReferenceSettings(_Section):
    """What the reference is made of."""

    file: str | None = Field(
        None,
        description="An image made elsewhere that is the reference, with its own grid; it is made "
        "of frames if absent.",
    )
    hdu: int | str | None = Field(
        None, description="Number or name of the file's HDU; the first image if absent."
    )
    gain: Positive | None = Field(
        None,
        description="e-/ADU of the file, n times that of a frame for a mean of n; from its header "
        "if absent.",
    )
    read_noise: NotNegative | None = Field(
        None, description="e- of the file; from its header if absent."
    )
    saturation: Annotated[float, Field(gt=0)] | None = Field(
        None, description="ADU in the file; from its header, or a plateau, if absent."
    )
    frames: tuple[str, ...] = Field(
        (), description="Names of the frames to combine; the best ones if absent."
    )
    max_frames: Count = Field(10, description="Most frames to combine.")
    keep: bool = Field(
        True,
        description="Keep the frames once chosen while they can be used, so that new frames change "
        "nothing of the earlier ones; false chooses anew with every frame that comes.",
    )

    @model_validator(mode="after")
    def _one_reference(self) -> ReferenceSettings:
        if self.file is not None and self.frames:
            raise ValueError("file and frames cannot both say what the reference is; keep one.")
        of_the_file = ("hdu", "gain", "read_noise", "saturation")
        idle = [name for name in of_the_file if getattr(self, name) is not None]
        if self.file is None and idle:
            raise ValueError(f"{idle[0]} is that of a reference file, and there is none (file).")
        return self


class StarSettings(_Section):
    """The stars whose light curves are measured."""

    threshold: Positive = Field(5.0, description="Least significance of a star on the reference.")
    max_stars: Count | None = Field(
        None, description="Most stars, the brightest, or the first of a list; all if absent."
    )
    list: str | None = Field(
        None,
        description="Table (CSV, ECSV, FITS, VOTable) with columns x and y, or ra and dec [deg], "
        "and perhaps name, in place of the stars found.",
    )


class SubtractSettings(_Section):
    """The fit of each frame."""

    kernel: str | int = Field(
        "auto", description="Size: an odd number, height x width ('19x25'), or auto."
    )
    background: Annotated[int, Field(ge=0, le=4)] = Field(
        1, description="Degree of the differential background."
    )
    regions: Literal["auto"] | Count = Field(
        "auto",
        description="Regions along each axis with a kernel of their own; auto makes them about "
        "512 pixels wide.",
    )
    likelihood: LikelihoodName = Field(
        LikelihoodName.HUBER,
        description="gaussian, huber or student-t; the last two are not bent by variable stars.",
    )
    prior: PriorName | None = Field(
        None, description="Prior of the kernel: evidence or none; the package's choice if absent."
    )
    device: str = Field("auto", description="auto, cpu or cuda.")

    @model_validator(mode="after")
    def _usable(self) -> SubtractSettings:
        parse_kernel_size(str(self.kernel))
        make_likelihood(self.likelihood)
        if self.prior is not None:
            make_penalty(self.prior, None)
        return self


class PhotometrySettings(_Section):
    """Fluxes in the differences."""

    robust: bool = Field(True, description="Give outlying pixels less weight.")
    sky_spacing: Positive = Field(
        64.0, description="Distance of the nodes of the residual sky [pixels]."
    )


class VariableSettings(_Section):
    """The search for variable and new sources."""

    threshold: Positive = Field(6.0, description="Least significance of a source in a difference.")


class Settings(_Section):
    """All settings of a run; :func:`load_settings` reads them from a file.

    Its attributes are the sections of the file; see :func:`describe_settings` for their keys.
    """

    run: RunSettings = RunSettings()
    frames: FrameSettings = FrameSettings()
    camera: CameraSettings = CameraSettings()
    keywords: KeywordSettings = KeywordSettings()
    quality: QualitySettings = QualitySettings()
    registration: RegisterSettings = Field(RegisterSettings(), alias="register")
    reference: ReferenceSettings = ReferenceSettings()
    stars: StarSettings = StarSettings()
    subtract: SubtractSettings = SubtractSettings()
    photometry: PhotometrySettings = PhotometrySettings()
    variables: VariableSettings = VariableSettings()
    _base: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _one_grid(self) -> Settings:
        if self.reference.file is not None and self.registration.onto is not None:
            raise ValueError(
                "register.onto and reference.file cannot both say whose grid is used; keep one."
            )
        return self

    @property
    def base(self) -> Path:
        """The folder that relative names start from: that of the file."""
        return self._base

    @property
    def run_folder(self) -> Path:
        """Where results go."""
        return self._base / self.run.folder

    def path(self, name: str | None) -> Path | None:
        """A file named in the settings; None for none."""
        return None if name is None else self._base / name


def load_settings(path: str | Path) -> Settings:
    """Read CONFIG.toml.

    Raises
    ------
    ReadError
        There is no such file.
    InputError
        It is not TOML, or a key or value is wrong; every mistake is named.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReadError(
            f"{path} cannot be read ({reason}); 'pytorchdia init FOLDER' writes one."
        ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error
    return settings_from(values, path.resolve().parent, str(path))


def settings_from(values: Mapping[str, Any], base: Path, where: str = "the settings") -> Settings:
    """Settings from nested mappings, as a TOML file has them.

    Raises
    ------
    InputError
        A key or value is wrong; every mistake is named.
    """
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        mistakes = "; ".join(_sentence(mistake) for mistake in error.errors())
        raise InputError(f"{where}: {mistakes}.") from error
    settings._base = base
    return settings


def describe_settings() -> Iterator[tuple[str, str, Any, str]]:
    """(section, key, default, meaning) of every setting, in the order of the file."""
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for key, entry in kind.model_fields.items():
            yield field.alias or section, key, entry.default, entry.description or ""


def _sentence(mistake: Any) -> str:
    place = [str(part) for part in mistake["loc"] if not str(part).startswith("function-")]
    name = ".".join(place)
    if mistake["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _keys(place[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_keys(place[:-1]))}"
        return f"there is no setting {name!r} ({hint})"
    return f"{name} = {mistake['input']!r}: {mistake['msg'].removeprefix('Value error, ')}".rstrip(
        "."
    )


def _keys(section: list[str]) -> list[str]:
    model: Any = Settings
    for part in section:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        kinds = (
            [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        )
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]
