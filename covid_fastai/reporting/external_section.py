"""The section of a report on patients of other hospitals, from the stored results of `validate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from covid_fastai.evaluation.formatting import format_interval, format_metric, format_metric_name, quote_source
from covid_fastai.reporting.run_facts import describe_metric

__all__ = ["describe_external"]

SAME = "same source"
KEY = ["images of", "comparison", "metric"]
MEANINGS = {  # of the values of the column `comparison`
    SAME: "both classes come from this hospital, so that they differ in nothing else that is known.",
    "source of the training": "the model was trained on images of this source, which is no other hospital.",
    "each class from another source": "any difference between the sources separates the classes. These results are "
    "no evidence for a finding.",
    "source not stated": "it is unknown whether both classes come from one hospital. These results decide nothing.",
    "one class": "there are patients of one class only.",
}


def describe_external(external: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the external validations of a run for `external.html`.

    Args:
        external: The stored results of `validate` by the name of the data (`RunFacts.external`).

    Returns:
        One mapping per data set: `name`, the main metrics as `lines`, all metrics as `table`, and `notes`, which say
        what each kind of comparison means.
    """
    return [_describe(name, result) for name, result in external.items()]


def _describe(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    thumbnail = {tuple(row[key] for key in KEY): row["value"] for row in result.get("thumbnail", [])}
    rows = [
        {
            "images of": row["images of"],
            "metric": format_metric_name(row["metric"]),
            "value": format_metric(row["value"]),
            "95% interval": format_interval(row["low"], row["high"]),
            "thumbnail": format_metric(thumbnail.get(tuple(row[key] for key in KEY))),
            "patients": row["n"],
            "comparison": row["comparison"],
        }
        for row in result["table"]
    ]
    kinds = list(dict.fromkeys(row["comparison"] for row in result["table"]))
    notes = [f"{kind[:1].upper()}{kind[1:]}: {MEANINGS[kind]}" for kind in kinds if kind in MEANINGS]
    overlap = result["overlap"]
    notes.append(
        f"{overlap} images were excluded, since the model was trained on them or their patients."
        if overlap
        else "No image had to be excluded: the model was trained on none of them, and on none of their patients."
    )
    if result.get("not_compared"):
        notes.append(
            f"The patients of {result['not_compared']} images could not be compared with those of the training."
        )
    aucs = [row for row in result["table"] if row["metric"] == "auc"]
    lines = [
        f"Image source {quote_source(row['images of'])}: {describe_metric(row)}"
        + ("" if row["comparison"] == SAME else f"; {row['comparison']}")
        for row in aucs or result["table"]
    ]
    table = pd.DataFrame(rows)
    return {"name": name.rpartition("-")[0] or name, "lines": lines, "table": table, "notes": notes}
