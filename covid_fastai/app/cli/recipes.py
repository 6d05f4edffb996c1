"""The recipes command: public data sets that are read by their name."""

from __future__ import annotations

from typing import Annotated

import typer

from covid_fastai.app.cli.options import AsJson, Debug
from covid_fastai.app.cli.output import echo, print_json, print_table

__all__ = ["recipes"]


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Print the files, source and terms of this recipe.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the public data sets that are read with --recipe, and the files that each of them needs."""
    from covid_fastai.data.recipes import get_recipe, list_recipes

    table = list_recipes()
    if name is not None:
        table = table[table["recipe"] == get_recipe(name).name]
    if as_json:
        print_json(table.to_dict("records"))
    elif name is None:
        print_table(table[["recipe", "title"]], title="Public data sets: covid-fastai train FOLDER --recipe NAME")
        echo("covid-fastai recipes NAME prints the files, source and terms of one.")
    else:
        echo("\n".join(f"{field}: {value}" for field, value in table.iloc[0].items()))
