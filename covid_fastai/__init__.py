"""From a folder of chest radiographs to a trained, honestly judged COVID-19 classifier.

Research use only; not a medical device.

The public names below are loaded on first use (PEP 562), so that `import covid_fastai` needs neither torch nor fastai.
"""

from __future__ import annotations

import importlib

_MODULE_OF = {
    "Abstention": "evaluation.selective",
    "Audit": "audit.audit",
    "Calibration": "evaluation.calibration",
    "Cohort": "data.cohort",
    "CohortInfo": "data.cohort",
    "Comparison": "evaluation.comparison",
    "CovidFastaiError": "errors",
    "DataError": "errors",
    "Evaluation": "evaluation.metrics",
    "LeakAudit": "audit.leaks",
    "OperatingPoint": "evaluation.thresholds",
    "Predictor": "model.predictor",
    "RiskCoverage": "evaluation.selective",
    "Run": "evaluation.runs",
    "ShortcutAudit": "audit.baselines",
    "Subgroups": "evaluation.subgroups",
    "TASKS": "data.tasks",
    "Task": "data.tasks",
    "TrainConfig": "config",
    "Verdict": "audit.verdict",
    "abstain_by_fold": "evaluation.selective",
    "audit_predictions": "audit.audit",
    "audit_run": "audit.audit",
    "build_dataloaders": "data.dataloaders",
    "build_learner": "model.learner",
    "calibrate": "evaluation.calibration",
    "check_input": "data.input_check",
    "choose_threshold": "evaluation.thresholds",
    "compare": "evaluation.comparison",
    "cross_validate": "training.cross_validate",
    "decision_curve": "evaluation.decision_curve",
    "download_coronahack": "data.download",
    "evaluate": "evaluation.metrics",
    "evaluate_subgroups": "evaluation.subgroups",
    "example_data": "data.examples",
    "find_leaks": "audit.leaks",
    "find_shortcuts": "audit.baselines",
    "fit": "model.schedule",
    "fold_by_patient": "data.splits",
    "gradio_app": "app.server.gradio",
    "check_inputs": "data.input_check",
    "saliency_fraction": "saliency.methods",
    "list_runs": "evaluation.runs",
    "load_model": "model.bundle",
    "open_image": "data.images",
    "plot_comparison": "evaluation.comparison",
    "plot_decision_curve": "evaluation.decision_curve",
    "plot_leak_groups": "audit.leaks",
    "plot_reliability": "evaluation.calibration",
    "plot_risk_coverage": "evaluation.selective",
    "plot_saliency": "saliency.methods",
    "plot_shortcuts": "audit.baselines",
    "plot_subgroups": "evaluation.subgroups",
    "predict": "evaluation.predict",
    "predict_batch": "app.batch.run",
    "predictive_values": "evaluation.decision_curve",
    "push_to_hub": "model.hub",
    "radiograph_block": "data.dataloaders",
    "randomisation_check": "saliency.methods",
    "read_audit": "audit.audit",
    "read_cohort": "data.metadata",
    "read_predictions": "evaluation.prediction_table",
    "read_run": "evaluation.runs",
    "retrain": "training.retrain",
    "risk_coverage": "evaluation.selective",
    "save_model": "model.bundle",
    "split_by_image": "data.splits",
    "split_by_patient": "data.splits",
    "summarise_cohort": "data.metadata",
    "thresholds_by_fold": "evaluation.thresholds",
    "train_classifier": "training.train",
    "validate": "training.external",
    "write_documents": "reporting.documents",
    "write_evaluation": "reporting.report",
    "write_exploration": "reporting.data_pages",
    "write_phantom": "data.phantom",
    "write_report": "reporting.report",
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
