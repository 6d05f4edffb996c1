"""`covid-fastai cache`: what is kept of decoded images, where, and how to be rid of it."""

from __future__ import annotations

from typing import Annotated

import typer

from covid_fastai.app.cli.options import AsJson, Debug

__all__ = ["cache"]


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove it all; it is made anew when it is needed.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what is kept of images that were decoded once (COVID_FASTAI_CACHE names the folder, or is off)."""
    import pandas as pd

    from covid_fastai.app.cli.output import print_json, print_table
    from covid_fastai.data.cache import default_cache

    kept = default_cache()
    if kept is None:
        facts = {"folder": None, "limit": 0, "contents": []}
    else:
        if clear:
            kept.clear()
        rows = [{"kind": kind, "entries": n, "bytes": size} for kind, (n, size) in sorted(kept.contents().items())]
        facts = {"folder": str(kept.folder), "limit": kept.limit, "contents": rows}
    if as_json:
        print_json(facts)
    elif kept is None:
        typer.echo("The cache is off.")
    else:
        table = pd.DataFrame(facts["contents"], columns=["kind", "entries", "bytes"])
        if not table.empty:
            print_table(table.assign(bytes=[f"{size / 1e6:,.1f} MB" for size in table["bytes"]]), title="Cache")
        total = sum(row["bytes"] for row in facts["contents"])
        typer.echo(
            f"{facts['folder']}: {total / 1e6:,.1f} of at most {kept.limit / 1e6:,.0f} MB. Remove it with --clear."
        )
