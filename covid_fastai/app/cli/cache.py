"""The command `cache`: show or clear the cache of decoded images."""

from __future__ import annotations

from typing import Annotated

import typer

from covid_fastai.app.cli.options import AsJson, Debug

__all__ = ["cache"]


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete its contents, which are recomputed if needed.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the contents of the cache of decoded images.

    The environment variable COVID_FASTAI_CACHE sets its folder; the value off disables it. COVID_FASTAI_CACHE_GB sets
    its maximum size in gigabytes; without it, it takes up to half of the free space.
    """
    import pandas as pd

    from covid_fastai.app.cli.output import echo, print_json, print_table
    from covid_fastai.data.cache import default_cache

    image_cache = default_cache()
    if image_cache is None:
        facts = {"folder": None, "limit": 0, "contents": []}
    else:
        if clear:
            image_cache.clear()
        contents = sorted(image_cache.contents().items())
        rows = [{"kind": kind, "entries": n, "bytes": size} for kind, (n, size) in contents]
        facts = {"folder": str(image_cache.folder), "limit": image_cache.size_limit(), "contents": rows}
    if as_json:
        print_json(facts)
    elif image_cache is None:
        echo("The cache is off.")
    else:
        table = pd.DataFrame(facts["contents"], columns=["kind", "entries", "bytes"])
        if not table.empty:
            print_table(table.assign(bytes=[f"{size / 1e6:,.1f} MB" for size in table["bytes"]]), title="Cache")
        total = sum(row["bytes"] for row in facts["contents"])
        echo(
            f"{facts['folder']}: {total / 1e6:,.1f} of at most {image_cache.size_limit() / 1e6:,.0f} MB. "
            "Delete its contents with --clear."
        )
