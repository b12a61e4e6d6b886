"""The page of a report: HTML, with everything that comes from outside escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from ...errors import Finding
from ..frames_table import FrameRow
from ..settings import Settings, describe_settings
from .pictures import Stamps

__all__ = ["Content", "KernelPicture", "VariableCard", "page_of"]

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("name", "frame", ""), ("status", "status", ""), ("reason", "reason", ""),
    ("time", "MJD", ".5f"), ("filter", "filter", ""), ("exposure", "exposure [s]", ".4g"),
    ("fwhm", "seeing [pix]", ".2f"), ("ellipticity", "ellipt.", ".2f"), ("sky", "sky [ADU]", ".5g"),
    ("n_stars", "stars", "d"), ("transparency", "transp.", ".3f"), ("scale", "P", ".4f"),
    ("scale_error", "P error", ".2g"), ("shift_x", "shift x [pix]", ".2f"),
    ("shift_y", "shift y [pix]", ".2f"), ("reduced_chi_square", "chi²/dof", ".2f"),
    ("detections", "sources", "d"), ("warnings", "warnings", "d"),
)  # fmt: skip
_LISTED: tuple[tuple[str, str, str], ...] = (  # of a candidate
    ("candidate", "number", "d"), ("kind", "kind", ""), ("star", "star", "d"), ("x", "x", ".2f"),
    ("y", "y", ".2f"), ("ra", "RA [deg]", ".6f"), ("dec", "Dec [deg]", "+.6f"),
    ("significance", "significance", ".5g"), ("n_epochs", "epochs", "d"),
    ("best_frame", "best frame", ""), ("flux", "flux", ".5g"), ("error", "error", ".5g"),
)  # fmt: skip
_MOST_LISTED = 60  # candidates
_MOST_NAMES = 6  # frames named with a finding


@dataclass(frozen=True)
class KernelPicture:
    """A frame, its kernel as a data URI, the kernel's shape, and P."""

    name: str
    picture: str
    shape: tuple[int, ...]
    scale: float


@dataclass(frozen=True)
class VariableCard:
    """A candidate with its light curve (SVG) and stamps, where there are any."""

    number: int
    candidate: Mapping[str, Any]
    curve: str | None
    stamps: Stamps | None


@dataclass(frozen=True)
class Content:
    """All that a report shows."""

    title: str
    rows: tuple[FrameRow, ...]
    stars: int
    fwhm: float
    settings: Settings
    findings: tuple[tuple[str, Finding], ...]
    candidates: tuple[Mapping[str, Any], ...]
    troubles: tuple[str, ...]
    reference: str
    reference_shape: tuple[int, int]
    season: str
    scatter: str | None
    photon_limit: bool
    kernels: tuple[KernelPicture, ...]
    variables: tuple[VariableCard, ...]


def page_of(content: Content) -> str:
    """The whole page; the same content gives the same bytes."""
    sections = (
        ("Overview", "overview", _overview(content)),
        ("Variables", "variables", _variables(content)),
        ("Scatter of the light curves", "scatter", _scatter(content)),
        ("Seeing, sky and P", "conditions", content.season),
        ("Kernels", "kernels", _kernels(content)),
        ("Frames", "frames", _frames(content.rows)),
        ("Findings", "findings", _findings(content.findings)),
        ("Settings", "settings", _settings(content.settings)),
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for title, name, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{text}\n</section>\n'
        for title, name, text in sections
    )
    folder = files(__package__)
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    title = escape(content.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>Report of {title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>Report of {title}</h1><nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>\n{body}</main>\n"
        f"<footer>pytorchdia {escape(version('pytorchdia'))}</footer>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _overview(content: Content) -> str:
    count = {s: sum(r.status == s for r in content.rows) for s in ("done", "rejected", "failed")}
    times = sorted(r.time for r in content.rows if r.time is not None)
    used = [r.name for r in content.rows if r.in_reference]
    origin = f"from {len(used)} frames: {', '.join(used)}" if used else "made elsewhere"
    kinds = [str(c["kind"]) for c in content.candidates]
    height, width = content.reference_shape
    facts = [
        ("frames", f"{len(content.rows)}: {count['done']} done, {count['rejected']} rejected, "
                   f"{count['failed']} failed"),
        ("time, MJD", f"{times[0]:.3f} to {times[-1]:.3f}" if times else "not known"),
        ("filter", ", ".join(sorted({r.filter for r in content.rows if r.filter})) or "not known"),
        ("reference", f"{width} x {height} pixels {origin}"),
        ("its seeing", f"{content.fwhm:.2f} pixels"),
        ("stars", str(content.stars)),
        ("candidates", ", ".join(f"{k}: {kinds.count(k)}" for k in dict.fromkeys(kinds)) or "none"),
    ]  # fmt: skip
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    marks = "".join(_mark(card, width, height) for card in content.variables)
    return (
        f'<dl class="facts">{terms}</dl>\n<figure class="field"><div class="sky">'
        f'<img src="{content.reference}" alt="The reference image, {width} by {height} pixels, '
        f'y upwards.">{marks}</div><figcaption>The reference; numbers are the variables below.'
        "</figcaption></figure>"
    )


def _mark(card: VariableCard, width: int, height: int) -> str:
    left = 100.0 * (float(card.candidate["x"]) + 0.5) / width
    bottom = 100.0 * (float(card.candidate["y"]) + 0.5) / height
    return (
        f'<a class="mark{" low" if bottom > 93.0 else ""}" href="#variable{card.number}" '
        f'style="left:{left:.2f}%;bottom:{bottom:.2f}%" '
        f'aria-label="variable {card.number}"><span>{card.number}</span></a>'
    )


def _variables(content: Content) -> str:
    failed = "".join(
        f"<p><strong>The search for variables is not complete.</strong> {escape(trouble)}</p>\n"
        for trouble in content.troubles
    )
    if not content.variables:
        return failed or "<p>No variable or new source was found.</p>"
    blink = '<p><button type="button" id="blink-all" aria-pressed="false">Blink all</button></p>\n'
    cards = "\n".join(_card(card) for card in content.variables)
    n, listed = len(content.candidates), content.candidates[:_MOST_LISTED]
    world = any(c["ra"] is not None for c in listed)
    columns = [column for column in _LISTED if world or column[0] not in ("ra", "dec")]
    rows = [[_cell(c[name], form) for name, _, form in columns] for c in listed]
    heads = [head for _, head, _ in columns]
    return (
        f"{failed}{blink}{cards}\n"
        f"<details><summary>List of candidates: {len(listed)} of {n}</summary>"
        f"{_table(heads, rows)}</details>"
    )


def _card(card: VariableCard) -> str:
    c = card.candidate
    what = f"star {c['star']}, {c['kind']}" if c["star"] is not None else str(c["kind"])
    place = f"x = {c['x']:.1f}, y = {c['y']:.1f}"
    if c["ra"] is not None:
        place += f"; RA {c['ra']:.6f}, Dec {c['dec']:+.6f}"
    said = (
        f"{place}. Significance {c['significance']:.1f}, found in {c['n_epochs']} epochs"
        f"{' and in the stack' if c['in_stack'] else ''}."
    )
    nothing = "What is doubtful is not followed." if c["kind"] == "doubtful" else "It has no epoch."
    curve = card.curve or f"<p>{nothing}</p>"
    return (
        f'<article class="variable" id="variable{card.number}">'
        f"<h3>{card.number}. {escape(what)}</h3><p>{escape(said)}</p>"
        f'<div class="columns"><div>{curve}</div>{_triplet(card.number, card.stamps)}</div>'
        "</article>"
    )


def _triplet(number: int, stamps: Stamps | None) -> str:
    if stamps is None:
        return '<p class="triplet">Only the stack of all epochs shows it.</p>'
    name = escape(stamps.frame)
    panels = (
        ("reference", stamps.reference, "Reference", "reference"),
        ("target", stamps.target, f"Target {name}, over P", "target / P"),
        ("difference", stamps.difference, f"Difference, ±{stamps.limit:.0f} sigma", "difference"),
    )
    shown = "".join(
        f'<figure data-panel="{key}"><div class="stamp"><img src="{uri}" alt="{alt} at variable '
        f'{number}."></div><figcaption>{caption}</figcaption></figure>'
        for key, uri, alt, caption in panels
    )
    return (
        f'<div class="triplet"><div class="panels">{shown}</div>'
        f"<p>{name}; red: brighter than the reference, up to {stamps.limit:.0f} sigma</p>"
        '<button type="button" class="blink" aria-pressed="false">Blink'
        f'<span class="hidden"> variable {number}</span></button></div>'
    )


def _scatter(content: Content) -> str:
    if content.scatter is None:
        return "<p>No star has three good epochs.</p>"
    limit = (
        " The photon limit is the error of an isolated star with a Gaussian PSF, from the gain, "
        "the noise of the sky and the seeing of each frame."
        if content.photon_limit
        else " There is no photon limit because the gain is not known."
    )
    return (
        f"{content.scatter}<p>The RMS is 1.4826 times the median distance from the median, over "
        f"epochs without a flag.{limit}</p>"
    )


def _kernels(content: Content) -> str:
    used = sum(row.status == "done" for row in content.rows)
    pictures = "".join(
        f'<figure><img class="kernel" src="{k.picture}" alt="Kernel of {escape(k.name)}, '
        f'{k.shape[0]} by {k.shape[1]} pixels, P = {k.scale:.4f}."><figcaption>{escape(k.name)}'
        "</figcaption></figure>"
        for k in content.kernels
    )
    return (
        f"<p>{len(content.kernels)} of {used} frames in the order of time; the region in the "
        "middle of the frame, each on its own scale, orange positive, purple negative.</p>"
        f'<div class="kernels">{pictures}</div>'
    )


def _frames(rows: Sequence[FrameRow]) -> str:
    cells = []
    for row in rows:
        values = [(getattr(row, name), form) for name, _, form in _COLUMNS]
        cells.append([_cell(value, form) for value, form in values])
    return (
        '<p><label for="find">Show frames with </label><input id="find" type="search" '
        'placeholder="name, status, reason"> <span id="shown" role="status"></span></p>'
        + _table([head for _, head, _ in _COLUMNS], cells, "frames-table", [r.status for r in rows])
    )


def _findings(findings: Iterable[tuple[str, Finding]]) -> str:
    by_code: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, finding in findings:
        by_code.setdefault((finding.level, finding.code), []).append((name, finding.message))
    if not by_code:
        return "<p>There is nothing to say.</p>"
    rows = []
    for (level, code), said in sorted(
        by_code.items(), key=lambda item: (item[0][0] == "note", item)
    ):
        names = list(dict.fromkeys(name for name, _ in said))
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        where = ", ".join(names[:_MOST_NAMES]) + more
        rows.append([_cell(v) for v in (level, code, len(names), said[0][1], where)])
    return _table(
        ("level", "code", "frames", "message of the first", "where"), rows, "findings-table"
    )


def _settings(settings: Settings) -> str:
    used = settings.model_dump(mode="json", by_alias=True)
    rows = []
    for section, key, default, meaning in describe_settings():
        value = used[section][key]
        plain = list(default) if isinstance(default, tuple) else default
        shown = "—" if value is None else escape(json.dumps(value, ensure_ascii=False))
        same = value == plain or (value is None and not isinstance(plain, (str, int, float)))
        rows.append([
            (f"{section}.{key}", ""), (shown if same else f"<strong>{shown}</strong>", ""),
            (escape(meaning), ""),
        ])  # fmt: skip
    return "<p>Values in bold are not the default.</p>" + _table(("key", "value", "meaning"), rows)


def _cell(value: Any, form: str = "") -> tuple[str, str]:
    """What a cell shows, and the number that it is sorted by."""
    if value is None:
        return "", ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value)), ""
    return escape(format(value, form if isinstance(value, float) else "")), repr(value)


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], name: str = "",
    kinds: Sequence[str] = (),
) -> str:  # fmt: skip
    sort = bool(name)
    ths = "".join(
        f'<th scope="col"><button type="button">{escape(h)}</button></th>'
        if sort
        else f'<th scope="col">{escape(h)}</th>'
        for h in heads
    )
    lines = []
    for i, row in enumerate(rows):
        kind = f' class="is-{escape(kinds[i].replace(" ", "-"))}"' if kinds else ""
        cells = "".join(
            f'<td class="number" data-v="{value}">{text}</td>' if value else f"<td>{text}</td>"
            for text, value in row
        )
        lines.append(f"<tr{kind}>{cells}</tr>")
    attributes = f' id="{name}" class="sortable"' if name else ""
    body = "\n".join(lines)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table"><table{attributes}>'
        f"<thead><tr>{ths}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


assert {name for name, _, _ in _COLUMNS} <= {f.name for f in fields(FrameRow)}
