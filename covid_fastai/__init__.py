"""From a folder of chest radiographs to a trained, honestly judged COVID-19 classifier.

Research use only; not a medical device.

The public names below are loaded on first use (PEP 562), so that `import covid_fastai` needs neither torch nor fastai.
"""

from __future__ import annotations

import importlib

_MODULE_OF = {
    "Abstention": "evidence.abstention",
    "Audit": "evidence.audit",
    "Calibration": "evidence.calibration",
    "Comparison": "evidence.comparison",
    "CovidFastaiError": "errors",
    "DataError": "errors",
    "Evaluation": "evidence.metrics",
    "LeakAudit": "evidence.leaks",
    "OperatingPoint": "evidence.thresholds",
    "Predictor": "model.predictor",
    "RiskCoverage": "evidence.selection",
    "Run": "evidence.runs",
    "ShortcutAudit": "evidence.shortcuts",
    "Subgroups": "evidence.subgroups",
    "TASKS": "data.tasks",
    "Task": "data.tasks",
    "TrainConfig": "config",
    "Verdict": "evidence.verdict",
    "abstain_by_fold": "evidence.abstention",
    "audit_predictions": "evidence.audit",
    "audit_run": "evidence.audit",
    "build_dataloaders": "data.dataloaders",
    "build_learner": "model.learner",
    "calibrate": "evidence.calibration",
    "check_input": "data.guard",
    "choose_threshold": "evidence.thresholds",
    "compare": "evidence.comparison",
    "cross_validate": "training",
    "decision_curve": "evidence.usefulness",
    "download_coronahack": "data.download",
    "evaluate": "evidence.metrics",
    "evaluate_subgroups": "evidence.subgroups",
    "example_data": "data.examples",
    "find_leaks": "evidence.leaks",
    "find_shortcuts": "evidence.shortcuts",
    "fit": "model.schedule",
    "fold_by_patient": "data.splits",
    "gradio_app": "app.space",
    "guard_images": "data.guard",
    "heat_share": "evidence.saliency",
    "list_runs": "evidence.runs",
    "load_model": "model.bundle",
    "open_image": "data.images",
    "plot_comparison": "evidence.comparison",
    "plot_decision_curve": "evidence.usefulness",
    "plot_leak_groups": "evidence.leaks",
    "plot_reliability": "evidence.calibration",
    "plot_risk_coverage": "evidence.selection",
    "plot_saliency": "evidence.saliency",
    "plot_shortcuts": "evidence.shortcuts",
    "plot_subgroups": "evidence.subgroups",
    "predict": "evidence.predictions",
    "predict_batch": "app.batch",
    "predictive_values": "evidence.usefulness",
    "push_to_hub": "model.hub",
    "radiograph_block": "data.dataloaders",
    "randomisation_check": "evidence.saliency",
    "read_audit": "evidence.audit",
    "read_cohort": "data.metadata",
    "read_predictions": "evidence.prediction_table",
    "read_run": "evidence.runs",
    "retrain": "auditing",
    "risk_coverage": "evidence.selection",
    "save_model": "model.bundle",
    "split_by_image": "data.splits",
    "split_by_patient": "data.splits",
    "summarise_cohort": "data.metadata",
    "thresholds_by_fold": "evidence.thresholds",
    "train_classifier": "training",
    "validate": "validation",
    "write_documents": "evidence.documents",
    "write_evaluation": "evidence.report",
    "write_exploration": "evidence.data_pages",
    "write_phantom": "data.phantom",
    "write_report": "evidence.report",
}

__all__ = sorted([*_MODULE_OF, "__version__"])


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("covid_fastai")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'covid_fastai' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"covid_fastai.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
