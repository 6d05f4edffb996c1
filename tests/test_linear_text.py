"""Reading text of others takes time that grows with its length, not with the square of it."""

from __future__ import annotations

import time

import pytest

from covid_fastai.data.delimited import _split_line
from covid_fastai.data.labels import _quoted_list
from covid_fastai.data.workbooks import _check_formulas
from covid_fastai.files import escape_cell, unescape_cell
from covid_fastai.model.hub import add_license
from covid_fastai.reporting.glossary import words_used

READERS = {
    "blanks in a line": (lambda n: 'a "b" ' + n * "c d ", _split_line),
    "quotation marks in a line": (lambda n: n * '" ', _split_line),
    "an open list of labels": (lambda n: "['" + n * "\\'" + "]", _quoted_list),
    "open cells of a sheet": (lambda n: n * b"<c ", lambda text: _check_formulas(text, path=None, title="")),
    # both a blank and a control character; found by fuzzing
    "skipped characters of a cell": (lambda n: "a\t" + n * "\x1d" + "'", unescape_cell),
    "skipped characters at the start of a cell": (lambda n: n * "\x1d" + "a", escape_cell),
    "open tags of a page": (lambda n: n * "<p ", words_used),
    "a model card": (
        lambda n: f"---\ntags: [a]\n{n * chr(10)}---\n{n * '---x'}",
        lambda text: add_license(text, "mit"),
    ),
}


def seconds(read, text) -> float:
    """Return the least of three times of the processor that a reader takes."""
    times = []
    for _ in range(3):
        start = time.process_time()
        read(text)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("name", READERS)
def test_the_time_grows_with_the_length(name):
    """Of 32 times the length, a linear reader takes some 32 times as long, and a quadratic one 1,024 times."""
    make, read = READERS[name]
    assert seconds(read, make(32 * 500)) < 250 * max(seconds(read, make(500)), 2e-5)
