"""Model evaluation: parameters and MACs, latency, accuracy, mAP, comparison tables, plots."""

from tfkd.costs import rules as rules
from tfkd.costs.rules import LayerCall, register
from tfkd.report.accuracy import Score, SeedStats, accuracy, score, seed_stats
from tfkd.report.against import Against
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
from tfkd.report.latency import Latency, latency, machine
from tfkd.report.latency_grid import LatencyRow, LatencyTable, latency_table
from tfkd.report.layer_times import LayerTimes
from tfkd.report.plots import training_curves
from tfkd.report.profile import LayerProfile, Profile, profile
from tfkd.report.table import Row, Table
from tfkd.report.trade_offs import accuracy_latency, accuracy_size
from tfkd.report.widths_and_bits import search

__all__ = [
    "Against", "ClassScores", "Classification", "DetectionRow", "DetectionScores",
    "DetectionTable", "Latency", "LatencyRow", "LatencyTable", "LayerCall", "LayerProfile",
    "LayerTimes", "Profile", "Row", "Score", "SeedStats", "Table", "accuracy",
    "accuracy_latency", "accuracy_size", "classification", "compare", "detect", "detection",
    "detection_pictures", "evaluate_detector", "latency", "latency_table", "machine",
    "precision_recall_plot", "profile", "register", "score", "search", "seed_stats",
    "training_curves",
]  # fmt: skip
