"""The public names: `__init__.py` loads each on first use."""

from .app.batch.run import predict_batch as predict_batch
from .app.server.gradio import gradio_app as gradio_app
from .audit.audit import Audit as Audit
from .audit.audit import audit_predictions as audit_predictions
from .audit.audit import audit_run as audit_run
from .audit.audit import read_audit as read_audit
from .audit.baselines import ShortcutAudit as ShortcutAudit
from .audit.baselines import find_shortcuts as find_shortcuts
from .audit.baselines import plot_shortcuts as plot_shortcuts
from .audit.leaks import LeakAudit as LeakAudit
from .audit.leaks import find_leaks as find_leaks
from .audit.leaks import plot_leak_groups as plot_leak_groups
from .audit.runs import Run as Run
from .audit.runs import list_runs as list_runs
from .audit.runs import read_run as read_run
from .audit.verdict import Verdict as Verdict
from .config import TrainConfig as TrainConfig
from .data.cohort import Cohort as Cohort
from .data.cohort import CohortInfo as CohortInfo
from .data.dataloaders import build_dataloaders as build_dataloaders
from .data.dataloaders import radiograph_block as radiograph_block
from .data.download import download_coronahack as download_coronahack
from .data.examples import example_data as example_data
from .data.images import open_image as open_image
from .data.input_check import check_input as check_input
from .data.input_check import check_inputs as check_inputs
from .data.lung_plots import plot_lungs as plot_lungs
from .data.lungs import Lungs as Lungs
from .data.lungs import measure_lungs as measure_lungs
from .data.lungs import segment_lungs as segment_lungs
from .data.metadata import read_cohort as read_cohort
from .data.metadata import summarise_cohort as summarise_cohort
from .data.phantom import write_phantom as write_phantom
from .data.recipes import list_recipes as list_recipes
from .data.splits import fold_by_patient as fold_by_patient
from .data.splits import fold_officially as fold_officially
from .data.splits import split_by_image as split_by_image
from .data.splits import split_by_patient as split_by_patient
from .data.splits import split_officially as split_officially
from .data.tasks import TASKS as TASKS
from .data.tasks import Task as Task
from .errors import CovidFastaiError as CovidFastaiError
from .errors import DataError as DataError
from .errors import DivergenceError as DivergenceError
from .errors import ImageError as ImageError
from .errors import ModelFormatError as ModelFormatError
from .errors import NotRadiographError as NotRadiographError
from .errors import OfflineError as OfflineError
from .errors import ResourceError as ResourceError
from .errors import UnavailableError as UnavailableError
from .errors import UsageError as UsageError
from .evaluation.calibration import Calibration as Calibration
from .evaluation.calibration import calibrate as calibrate
from .evaluation.calibration import plot_reliability as plot_reliability
from .evaluation.calibration_curve import calibration_curve as calibration_curve
from .evaluation.comparison import Comparison as Comparison
from .evaluation.comparison import compare as compare
from .evaluation.comparison import plot_comparison as plot_comparison
from .evaluation.decision_curve import decision_curve as decision_curve
from .evaluation.decision_curve import plot_decision_curve as plot_decision_curve
from .evaluation.decision_curve import predictive_values as predictive_values
from .evaluation.interpretation import plot_confusion_matrix as plot_confusion_matrix
from .evaluation.interpretation import plot_top_losses as plot_top_losses
from .evaluation.metrics import Evaluation as Evaluation
from .evaluation.metrics import evaluate as evaluate
from .evaluation.plots import plot_history as plot_history
from .evaluation.plots import plot_roc as plot_roc
from .evaluation.predict import predict as predict
from .evaluation.prediction_table import read_predictions as read_predictions
from .evaluation.selective import Abstention as Abstention
from .evaluation.selective import RiskCoverage as RiskCoverage
from .evaluation.selective import abstain_by_fold as abstain_by_fold
from .evaluation.selective import plot_risk_coverage as plot_risk_coverage
from .evaluation.selective import risk_coverage as risk_coverage
from .evaluation.subgroups import Subgroups as Subgroups
from .evaluation.subgroups import evaluate_subgroups as evaluate_subgroups
from .evaluation.subgroups import plot_subgroups as plot_subgroups
from .evaluation.thresholds import OperatingPoint as OperatingPoint
from .evaluation.thresholds import choose_threshold as choose_threshold
from .evaluation.thresholds import thresholds_by_fold as thresholds_by_fold
from .model.bundle import load_model as load_model
from .model.bundle import save_model as save_model
from .model.hub import push_to_hub as push_to_hub
from .model.learner import build_learner as build_learner
from .model.predictor import Predictor as Predictor
from .model.schedule import fit as fit
from .reporting.data_pages import write_exploration as write_exploration
from .reporting.documents import write_documents as write_documents
from .reporting.report import write_evaluation as write_evaluation
from .reporting.report import write_report as write_report
from .saliency.methods import plot_saliency as plot_saliency
from .saliency.methods import randomisation_check as randomisation_check
from .saliency.methods import saliency_fraction as saliency_fraction
from .training.cross_validate import cross_validate as cross_validate
from .training.external import validate as validate
from .training.retrain import retrain as retrain
from .training.train import train_classifier as train_classifier

__version__: str

__all__ = [
    "Abstention",
    "Audit",
    "Calibration",
    "Cohort",
    "CohortInfo",
    "Comparison",
    "CovidFastaiError",
    "DataError",
    "DivergenceError",
    "Evaluation",
    "ImageError",
    "LeakAudit",
    "Lungs",
    "ModelFormatError",
    "NotRadiographError",
    "OfflineError",
    "OperatingPoint",
    "Predictor",
    "ResourceError",
    "RiskCoverage",
    "Run",
    "ShortcutAudit",
    "Subgroups",
    "TASKS",
    "Task",
    "TrainConfig",
    "UnavailableError",
    "UsageError",
    "Verdict",
    "__version__",
    "abstain_by_fold",
    "audit_predictions",
    "audit_run",
    "build_dataloaders",
    "build_learner",
    "calibrate",
    "calibration_curve",
    "check_input",
    "check_inputs",
    "choose_threshold",
    "compare",
    "cross_validate",
    "decision_curve",
    "download_coronahack",
    "evaluate",
    "evaluate_subgroups",
    "example_data",
    "find_leaks",
    "find_shortcuts",
    "fit",
    "fold_by_patient",
    "fold_officially",
    "gradio_app",
    "list_recipes",
    "list_runs",
    "load_model",
    "measure_lungs",
    "open_image",
    "plot_comparison",
    "plot_confusion_matrix",
    "plot_decision_curve",
    "plot_history",
    "plot_leak_groups",
    "plot_lungs",
    "plot_reliability",
    "plot_risk_coverage",
    "plot_roc",
    "plot_saliency",
    "plot_shortcuts",
    "plot_subgroups",
    "plot_top_losses",
    "predict",
    "predict_batch",
    "predictive_values",
    "push_to_hub",
    "radiograph_block",
    "randomisation_check",
    "read_audit",
    "read_cohort",
    "read_predictions",
    "read_run",
    "retrain",
    "risk_coverage",
    "saliency_fraction",
    "save_model",
    "segment_lungs",
    "split_by_image",
    "split_by_patient",
    "split_officially",
    "summarise_cohort",
    "thresholds_by_fold",
    "train_classifier",
    "validate",
    "write_documents",
    "write_evaluation",
    "write_exploration",
    "write_phantom",
    "write_report",
]
