"""What a page says on shortcuts: the verdict, the baselines beside the network, the probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from covid_fastai.audit.audit import Audit
from covid_fastai.audit.baselines import ShortcutAudit, plot_shortcuts
from covid_fastai.evaluation.formatting import format_interval, format_metric
from covid_fastai.reporting.html import draw_chart

__all__ = ["describe_audit", "describe_shortcuts"]

VERDICT_TEXT = {
    "good": "The rules and what was found for each stand below. Other hospitals and other readers may still differ.",
    "care": "Nothing that was tried speaks against the model; what was not tried stands below.",
    "alarm": "What the figures below measure may not be disease. The rules and what was found for each stand below.",
}


def describe_audit(audit: Audit | None) -> dict[str, Any] | None:
    """Return what `audit.html` shows of an audit; None where there is none.

    Args:
        audit: What `audit_run` or `audit_predictions` returned.

    Returns:
        Texts, tables and a figure by name.
    """
    if audit is None:
        return None
    level = {"shown": "good", "not shown": "care", "refuted": "alarm"}[audit.verdict.level]
    conditions = audit.verdict.table().rename(
        columns={"name": "what must hold", "outcome": "outcome", "text": "what was found"}
    )
    altered = pd.DataFrame(
        {
            "images": audit.altered["change"],
            "altered": audit.altered["when"],
            "AUC": [format_metric(value) for value in audit.altered["auc"]],
            "95% interval": [
                format_interval(low, high)
                for low, high in zip(audit.altered["auc_low"], audit.altered["auc_high"], strict=True)
            ],
        }
    )
    batch_effect = "; ".join(
        f"of {row['class']} at AUC {format_metric(row['auc'])} ({format_interval(row['low'], row['high'])}, "
        f"n = {row['n']} patients)"
        for row in audit.batch_effect.to_dict("records")
    )
    return {
        "verdict": {"level": level, "title": audit.verdict.sentence, "text": VERDICT_TEXT[level]},
        "conditions": conditions,
        "altered": altered if len(altered) else None,
        "batch_effect": batch_effect,
        **_baselines(audit.summary(), audit.shortcuts, audit.network),
    }


def describe_shortcuts(shortcuts: ShortcutAudit) -> dict[str, Any]:
    """Return what a page shows of baselines without a network beside them: texts, a table and a figure by name."""
    return _baselines(shortcuts.summary(), shortcuts, None)


def _baselines(table: pd.DataFrame, shortcuts: ShortcutAudit, network: Mapping[str, Any] | None) -> dict[str, Any]:
    table["given"] = table["given"] + ": " + table.pop("sees")
    alt = "AUC of baselines that see little or nothing of a lung" + (", and of the network" if network else "")
    figure = draw_chart(plot_shortcuts(shortcuts, network=network), alt, wide=True)
    return {"baselines": table, "notes": shortcuts.notes()[:-1], "figure": figure}
