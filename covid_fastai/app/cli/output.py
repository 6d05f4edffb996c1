"""Print results, and set up the logging of progress."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from covid_fastai.notices import RESEARCH_USE

if TYPE_CHECKING:
    import pandas as pd

    from covid_fastai.evaluation.metrics import Evaluation

__all__ = [
    "count",
    "degrade_streams",
    "echo",
    "print_evaluation",
    "print_json",
    "print_problems",
    "print_table",
    "set_up_logging",
]

logger = logging.getLogger("covid_fastai")


def degrade_streams() -> None:
    """Make standard output and error print an escape for each character that their encoding does not have.

    A console can have any encoding (`cp1252` and `cp437` on Windows, ASCII with `LC_ALL=C`), and a file name any bytes,
    which Python holds as surrogates that not even UTF-8 can encode.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a console, and any object in a test
            stream.reconfigure(errors="backslashreplace")  # guard: degraded


def echo(text: object) -> None:
    """Print a line on standard output, in its encoding (`typer.echo` writes UTF-8 to an ASCII console)."""
    print(text, flush=True)  # noqa: T201


def set_up_logging(*, quiet: bool, as_json: bool) -> Any:
    """Send the log of the package to standard error and return its console.

    Args:
        quiet: Log only warnings and errors.
        as_json: The same, since standard output is for a program.

    Returns:
        The `rich.console.Console` for a progress bar; None if `quiet` or `as_json`.
    """
    import warnings

    from rich.console import Console
    from rich.logging import RichHandler

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # users cannot fix them
    console = Console(stderr=True)
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False, highlighter=None)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet or as_json else logging.INFO)
    return None if quiet or as_json else console


def print_evaluation(result: Evaluation, *, title: str) -> None:
    """Print the metrics of an evaluation, and how many images have no prediction."""
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
            where = ", ".join([*position, *([row["path"]] if row["path"] else [])])
            echo(f"{severity}: {where}{': ' if where else ''}{row['reason']}. {row['remedy']}")
        if len(rows) > most:
            echo(f"... and {len(rows) - most} more of the kind {kind.replace('_', ' ')!r}")


def print_table(table: pd.DataFrame, *, title: str) -> None:
    """Print a table, with lines on a terminal and as plain text otherwise."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        echo(f"{title}\n{table.to_string(index=False)}")
        return
    rich_table = Table(title=title, title_justify="left")
    for name in table.columns:
        rich_table.add_column(str(name), overflow="fold")
    for row in table.itertuples(index=False):
        rich_table.add_row(*(str(value).replace("[", r"\[") for value in row))  # rich reads [...] as markup
    console.print(rich_table)


def print_json(value: Any) -> None:
    """Print one JSON object, with the escapes of JSON where standard output is not UTF-8."""
    from covid_fastai.files import to_plain

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = encoding.lower().replace("-", "") in ("utf8", "utf8sig")
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=not is_utf8, allow_nan=False)  # guard: json_ascii
    echo(text.encode("utf-8", "backslashreplace").decode())  # a surrogate's escape is the same in JSON


def count(n: int, noun: str) -> str:
    """Return a number with its noun, as in "1 image" or "2 images"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
