"""Model evaluation: costs, latency, accuracy, mAP, tables, plots, verdicts, the page of a run."""

from tfkd.costs import rules as rules
from tfkd.costs.rules import LayerCall, register
from tfkd.report.accuracy import Score, SeedStats, accuracy, score, seed_stats
from tfkd.report.against import Against
from tfkd.report.calibration import Calibration, calibration_error, fit_temperature
from tfkd.report.class_details import Change, ClassDetails
from tfkd.report.classification import Classification, ClassScores, classification
from tfkd.report.compare import compare
from tfkd.report.detection import (
    DetectionScores,
    detect,
    detection,
    detection_pictures,
    evaluate_detector,
)
from tfkd.report.detection_plots import precision_recall_plot
from tfkd.report.detection_table import DetectionRow, DetectionTable
from tfkd.report.gates import ACCEPTED, INFEASIBLE, REGRESSED, Check, Gates, Verdict, judge
from tfkd.report.latency import Latency, latency, machine
from tfkd.report.latency_grid import LatencyRow, LatencyTable, latency_table
from tfkd.report.layer_times import LayerTimes
from tfkd.report.plots import training_curves
from tfkd.report.profile import LayerProfile, Profile, profile
from tfkd.report.run_report import LayerKept, RunReport, Stage
from tfkd.report.table import Row, Table
from tfkd.report.thumbnails import data_url, thumbnails
from tfkd.report.trade_offs import accuracy_latency, accuracy_size
from tfkd.report.widths_and_bits import search
from tfkd.report.writers import to_mlflow, to_wandb

__all__ = [
    "ACCEPTED", "INFEASIBLE", "REGRESSED", "Against", "Calibration", "Change", "Check",
    "ClassDetails", "ClassScores", "Classification", "DetectionRow", "DetectionScores",
    "DetectionTable", "Gates", "Latency", "LatencyRow", "LatencyTable", "LayerCall",
    "LayerKept", "LayerProfile", "LayerTimes", "Profile", "Row", "RunReport", "Score",
    "SeedStats", "Stage", "Table", "Verdict", "accuracy", "accuracy_latency", "accuracy_size",
    "calibration_error", "classification", "compare", "data_url", "detect",
    "detection", "detection_pictures",
    "evaluate_detector", "fit_temperature", "judge", "latency", "latency_table", "machine",
    "precision_recall_plot", "profile", "register", "score", "search", "seed_stats",
    "thumbnails", "to_mlflow", "to_wandb", "training_curves",
]  # fmt: skip
