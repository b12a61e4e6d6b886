"""The documentation agrees with the code, and its examples run."""

from __future__ import annotations

import importlib
import importlib.util
import re
import textwrap
import tomllib
import warnings
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot
from typer.main import get_command

import pytorchdia
from pytorchdia import PyTorchDIAWarning, Status, errors
from pytorchdia.cli import main as cli
from pytorchdia.frame import Flag

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = "\n".join(p.read_text() for p in sorted((ROOT / "src").rglob("*.py")))
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def section(text: str, title: str) -> str:
    """The part of a page under a heading, up to the next heading of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(title)}$", text, re.M)
    assert match, f"no section {title!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


def first_cells(text: str) -> list[str]:
    """What stands in backticks at the start of each row of the tables in ``text``."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.M)


def examples():
    spec = importlib.util.spec_from_file_location("docs_examples", DOCS / "examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_examples_run(path: Path) -> None:
    found = examples().failures(path.read_text(), path.name)
    assert not found, found[0]


def test_examples_are_found_and_a_wrong_one_is_reported() -> None:
    module = examples()
    assert sum(len(module.blocks(p.read_text())) for p in PAGES) > 20
    assert module.failures("```python\n>>> 1 + 1\n3\n```\n", "wrong")


def codes_in_source() -> set[str]:
    codes = set(re.findall(r'Finding\(\s*"([a-z0-9-]+)"', SOURCE))
    # Codes that are put together: those of the header's numbers, and those of the statuses.
    assert "-unusable" in SOURCE
    codes |= {f"{name}-unusable" for name in ("gain", "read-noise", "exposure")}
    return codes | {s.name.lower().replace("_", "-") for s in Status if not s.ok}


def test_every_finding_is_described() -> None:
    described = first_cells(section(page("troubleshooting.md"), "Findings"))
    assert len(described) == len(set(described))
    assert set(described) == codes_in_source()


def test_no_finding_code_escapes_the_search() -> None:
    calls = len(re.findall(r"\bFinding\(", SOURCE))
    plain = len(re.findall(r'Finding\(\s*"[a-z0-9-]+"', SOURCE))
    assert calls - plain == 2, "a code is put together in a new place: see codes_in_source"


def test_every_status_is_described() -> None:
    described = first_cells(section(page("troubleshooting.md"), "Status"))
    assert described == [status.name for status in Status]


def test_every_exit_code_is_described() -> None:
    described = first_cells(section(page("troubleshooting.md"), "Exit codes"))
    assert [int(code) for code in described] == list(cli.EXIT_CODES)


@pytest.mark.parametrize(("title", "base"), [("Errors", Exception), ("Warnings", UserWarning)])
def test_every_error_class_is_described(title: str, base: type) -> None:
    classes = {
        name
        for name in errors.__all__
        if isinstance(c := getattr(errors, name), type)
        and issubclass(c, base)
        and issubclass(c, Warning) == (title == "Warnings")
    }
    assert set(first_cells(section(page("troubleshooting.md"), title))) == classes


def test_every_flag_is_described() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", page("output.md"), re.M)
    assert rows == [(str(int(f).bit_length() - 1), str(int(f)), f.name) for f in Flag]


def test_every_keyword_and_hdu_is_described() -> None:
    product = (ROOT / "src/pytorchdia/product.py").read_text()
    text = page("output.md")
    written = re.findall(r'\("(DIA[A-Z0-9]+)",', product)
    assert re.findall(r"^\| (DIA\w+) \|", section(text, "Primary header"), re.M) == written
    hdus = re.findall(r'name="(\w+)"\)', product)
    described = re.findall(r"^\| (\w+) \| (?:image|table)", text, re.M)
    assert described[0] == "PRIMARY"
    assert sorted(described[1:]) == sorted(hdus)


def test_command_line_options_exist() -> None:
    known = set()
    commands = [get_command(cli.app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        known |= {option for each in command.params for option in each.opts + each.secondary_opts}
    known |= {"--help"}
    for path in PAGES:
        text = re.sub(r"^(sphinx-build|python benchmarks).*$", "", path.read_text(), flags=re.M)
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert mentioned <= known, f"{path.name}: {mentioned - known}"


def resolve(name: str) -> object:
    """Import ``pytorchdia.module.Class.attribute``."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_every_equation_has_an_object_or_says_not_yet() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", page("equations.md"), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 35))
    for number, objects in rows:
        names = re.findall(r"`(pytorchdia[\w.]+)`", objects)
        assert names or objects == "not yet", f"eq {number}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_objects_named_in_the_pages_import(path: Path) -> None:
    names = re.findall(r"[`~](pytorchdia(?:\.\w+)+)", path.read_text())
    for name in names:
        resolve(name)


def test_every_public_name_is_in_the_reference() -> None:
    text = page("api.md")
    listed = re.findall(r"^   ~([\w.]+)$", text, re.M)
    assert {name.rsplit(".", 1)[1] for name in listed} == set(pytorchdia.__all__)
    for name in listed:
        assert resolve(name) is getattr(pytorchdia, name.rsplit(".", 1)[1])


def test_links_between_pages_lead_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def contracts() -> list[dict]:
    """The contracts on layers: the first is that of the package, the others of its rooms."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    every = settings["tool"]["importlinter"]["contracts"]
    return [contract for contract in every if contract["type"] == "layers"]


def names_of(layers: list[str]) -> list[set[str]]:
    return [set(layer.replace("pytorchdia.", "").split(" | ")) for layer in layers]


def test_layers_in_the_pages_are_those_of_the_contract() -> None:
    package = contracts()[0]
    text = section(page("architecture.md"), "Layers")
    table = text.split("| Layer | Modules |")[1].split("### ")[0]
    shown = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| .* \|$", table, re.M)]
    assert shown == names_of(package["layers"])


def test_layers_of_the_rooms_in_the_pages_are_those_of_their_contracts() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| (.*) \|$", section(page("architecture.md"), "Rooms"), re.M
    )
    shown: dict[str, list[set[str]]] = {}
    for room, modules in rows:
        shown.setdefault(f"pytorchdia.{room}", []).append(set(re.findall(r"`(\w+)`", modules)))
    assert shown == {room["containers"][0]: names_of(room["layers"]) for room in contracts()[1:]}


def test_version_is_the_same_everywhere() -> None:
    assert f"version: {pytorchdia.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert pytorchdia.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_tutorial_runs_and_its_assertions_hold() -> None:
    matplotlib.use("agg")
    blocks = re.findall(r"^\.\. plot::\n(.*?)^```", page("tutorial-season.md"), re.M | re.S)
    code = "\n".join(
        textwrap.dedent(re.sub(r"^ +:\w.*\n", "", block, flags=re.M)) for block in blocks
    )
    assert code.count("assert ") >= 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)
        exec(compile(code, "tutorial-season.md", "exec"), {})
    pyplot.close("all")
