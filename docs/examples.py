"""The examples of a page: found in its text, run by the documentation build and by the tests."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import warnings

from pytorchdia import PyTorchDIAWarning

BLOCK = re.compile(r"^```\{?(?:doctest|python|pycon)\}?[ \t]*\n(.*?)^```[ \t]*$", re.M | re.S)


def blocks(text: str) -> list[str]:
    """The fenced blocks that hold ``>>>`` examples, in the order of the page."""
    return [block for block in BLOCK.findall(text) if ">>>" in block]


def failures(text: str, name: str) -> list[str]:
    """Run all examples of a page in one namespace; one report for each that fails."""
    examples = "\n".join(blocks(text))
    test = doctest.DocTestParser().get_doctest(examples, {}, name, name, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore", PyTorchDIAWarning)
        runner.run(test, out=report.write)
    return [report.getvalue()] if runner.failures else []
