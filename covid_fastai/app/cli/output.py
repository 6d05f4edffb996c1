"""Print results, and set up the logging of progress."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from covid_fastai.app.cli.wording import OptionFormatter, as_options
from covid_fastai.data.problems import CONTROLS, visible
from covid_fastai.notices import DRAWINGS, RESEARCH_USE
from covid_fastai.progress import LIVE

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from covid_fastai.app.cli.activity import Activity
    from covid_fastai.evaluation.metrics import Evaluation

__all__ = [
    "VisibleFormatter",
    "count",
    "degrade_streams",
    "echo",
    "print_evaluation",
    "print_json",
    "print_problems",
    "print_table",
    "set_up_logging",
    "stop_activity",
    "wrap_text",
]

logger = logging.getLogger("covid_fastai")
COMMAND = re.compile(r": +(covid-fastai .*)$")
_activities: list[Activity] = []  # that of this process, for `stop_activity`


def degrade_streams() -> None:
    """Make standard output and error print an escape for each character that their encoding does not have.

    A console can have any encoding (`cp1252` and `cp437` on Windows, ASCII with `LC_ALL=C`), and a file name any bytes,
    which Python holds as surrogates that not even UTF-8 can encode.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a console, and any object in a test
            stream.reconfigure(errors="backslashreplace")  # guard: degraded


def echo(text: object) -> None:
    """Print text on standard output, in its encoding (`typer.echo` writes UTF-8 to an ASCII console).

    Characters that a terminal would obey, such as those of a file name, are escaped.
    """
    stop_activity()
    shown = visible(str(text), lines=True)
    if sys.stdout.isatty():
        shown = wrap_text(shown, shutil.get_terminal_size().columns)
    print(shown, flush=True)  # noqa: T201


def set_up_logging(*, quiet: bool, as_json: bool) -> Activity | None:
    """Send the log of the package to standard error, on a terminal with a line that says what is being done.

    Args:
        quiet: Log only warnings and errors.
        as_json: The same, since standard output is for a program.

    Returns:
        The line of the terminal; None without a terminal, or if `quiet` or `as_json`.
    """
    import warnings

    from rich.console import Console

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # users cannot fix them
    console = Console(stderr=True)
    if console.is_terminal:
        handler = _ConsoleHandler(console)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logger.addHandler(handler)
    # warnings and logs of other packages can have names and values of files in them
    logging.captureWarnings(True)  # guard: visible_warnings
    logging.getLogger("py.warnings").addHandler(handler)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(VisibleFormatter("%(message)s"))  # guard: visible_logs
    logger.setLevel(logging.WARNING if quiet or as_json else logging.INFO)
    # not where FORCE_COLOR makes a terminal of a file: a line that is overwritten has no place in it
    if quiet or as_json or not console.is_terminal or not sys.stderr.isatty():
        return None
    from covid_fastai.app.cli.activity import Activity

    activity = Activity(console)
    logger.addHandler(activity)
    LIVE.addHandler(activity)
    LIVE.setLevel(logging.INFO)
    _activities[:] = [activity]
    activity.start()
    return activity


def stop_activity() -> None:
    """Remove the line that says what is being done, before results or an error are printed."""
    for activity in _activities:
        activity.stop()


def wrap_text(text: str, width: int) -> str:
    """Break the lines of a text between words, so that a name or path stays whole and can be copied.

    A command at the end of a line that is too long gets a line of its own, which only the terminal breaks.

    Args:
        text: The text.
        width: Columns of the terminal.
    """
    from rich.cells import cell_len  # columns: a Chinese character takes two

    lines = []
    for line in text.split("\n"):
        command = COMMAND.search(line) if cell_len(line) > width else None
        if command:
            indent = line[: len(line) - len(line.lstrip())]
            lines += wrap_text(line[: command.start()] + ":", width).split("\n") + [f"{indent}  {command[1]}"]
        elif cell_len(line) > width:
            indent = line[: len(line) - len(line.lstrip())]
            parts = [indent]
            for word in re.split(r"[ \t]+", line.strip(" \t")):
                if parts[-1].strip() and cell_len(f"{parts[-1]} {word}") > width:
                    parts.append(indent)
                parts[-1] += f" {word}" if parts[-1].strip() else word
            lines += parts
        else:
            lines.append(line)
    return "\n".join(lines)


class _ConsoleHandler(logging.Handler):
    """Print log lines on a terminal, above the line of `Activity`."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = wrap_text(self.format(record), self.console.width)
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)


class VisibleFormatter(OptionFormatter):
    """Format messages with escapes for the control characters of names, and with the options of the command line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return visible(super().format(record), lines=True)  # guard: visible_log


def print_evaluation(result: Evaluation, *, title: str) -> None:
    """Print the metrics of an evaluation, and how many images have no prediction."""
    if result.is_synthetic:
        echo(DRAWINGS)
    print_table(result.summary(), title=title)
    from covid_fastai.evaluation.prediction_table import UNKNOWN_PATIENTS

    failed = f" {result.n_failed} images have no prediction and are not counted." if result.n_failed else ""
    unknown = "" if result.patients_known else f" {UNKNOWN_PATIENTS}"
    echo(f"{result.n_images} images.{failed}{unknown} {RESEARCH_USE}")


def print_problems(problems: Sequence[Mapping[str, Any]], *, most: int = 5) -> None:
    """Print the problems, the most severe first, and at most so many of each kind."""
    from covid_fastai.data.problems import SEVERITIES

    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(problems, key=lambda row: SEVERITIES.index(row["severity"])):
        kinds.setdefault((row["severity"], row["kind"]), []).append(row)
    for (severity, kind), rows in kinds.items():
        for row in rows[:most]:
            position = [] if row["row"] is None else [f"row {row['row']}"]
            where = ", ".join([*position, *([visible(row["path"])] if row["path"] else [])])
            echo(f"{severity}: {where}{': ' if where else ''}{row['reason']}. {as_options(row['remedy'])}")
        if len(rows) > most:
            echo(f"... and {len(rows) - most} more of the kind {kind.replace('_', ' ')!r}")


def print_table(table: pd.DataFrame, *, title: str) -> None:
    """Print a table, with lines on a terminal and as plain text otherwise."""
    from rich.console import Console
    from rich.table import Table

    stop_activity()
    console = Console()
    title = visible(title, lines=True)
    table = table.rename(columns=lambda name: visible(str(name)))
    table = table.map(lambda value: visible(value) if isinstance(value, str) else value)
    if table.empty:
        echo(f"{title}: none")
        return
    if not console.is_terminal:
        echo(f"{title}\n{table.to_string(index=False)}")
        return
    rich_table = Table(title=title, title_justify="left")
    for name in table.columns:
        rich_table.add_column(str(name), overflow="fold")
    for row in table.itertuples(index=False):
        rich_table.add_row(*(str(value).replace("[", r"\[") for value in row))  # rich reads [...] as markup
    if rich_table.__rich_measure__(console, console.options).minimum <= console.width:
        console.print(rich_table)
        return
    echo(title)  # its words would be broken: a block per row, the names of which can be copied
    for first, *values in table.itertuples(index=False):
        named = zip(table.columns[1:], values, strict=True)
        echo("\n".join([f"  {first}", *(f"    {name}: {value}" for name, value in named)]))


def print_json(value: Any) -> None:
    """Print one JSON object, with the escapes of JSON where standard output is not UTF-8."""
    from covid_fastai.files import to_plain

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = encoding.lower().replace("-", "") in ("utf8", "utf8sig")
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=not is_utf8, allow_nan=False)  # guard: json_ascii
    text = text.encode("utf-8", "backslashreplace").decode()  # a surrogate's escape is the same in JSON
    stop_activity()
    # JSON itself escapes only the characters below the blank, which stand in texts only
    print(CONTROLS.sub(_json_escape, text), flush=True)  # noqa: T201


def _json_escape(found: re.Match[str]) -> str:
    return found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}"


def count(n: int, noun: str) -> str:
    """Return a number with its noun, as in "1 image" or "2 images"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
