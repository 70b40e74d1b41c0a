"""Metrics of trained models. Public names are imported on first use, as most of them need the extra `recipes`.

- `classification`: error, likelihood, calibration, accuracy of groups, bound of the information about the labels;
- `regression`: errors, coefficient of determination, information about the target;
- `continual`: accuracy, transfer and forgetting over splits;
- `attacks`: gradient attacks, AutoAttack's ensemble, sanity checks of robustness;
- `corruptions`, `table_corruptions`: corrupted images and tables, by kind and severity;
- `out_of_distribution`: scores of OOD inputs, and how well they detect them;
- `concepts`: metrics of predicted concepts, interventions, reliance, leakage;
- `intervals`: 95 % CI of means and of paired differences over seeds.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "classification.metrics": ("classification_metrics", "calibration_bins", "information_bound", "label_entropy"),
    "classification.calibration": ("calibration_metrics", "selective_accuracy"),
    "classification.groups": ("group_accuracies",),
    "regression": ("regression_metrics", "gaussian_information"),
    "continual": ("accuracy_matrix", "overall_accuracy", "backward_transfer", "forward_transfer", "forgetting"),
    "attacks.gradient": ("fgsm", "pgd", "uniform_noise"),
    "attacks.ensemble": ("attack_ensemble",),
    "attacks.sanity": ("sanity_checks",),
    "corruptions": ("corrupt",),
    "table_corruptions": ("corrupt_table",),
    "out_of_distribution": ("ood_scores", "detection_metrics"),
    "concepts.metrics": ("concept_metrics", "class_concept_matrix", "head_agreement"),
    "concepts.predictions": ("predict_concepts",),
    "concepts.interventions": ("intervene",),
    "concepts.curves": ("intervention_curve",),
    "concepts.reliance": ("concept_reliance", "completeness", "head_effects"),
    "concepts.leakage": ("leakage",),
    "intervals": ("mean_interval", "paired_interval", "accuracy_interval"),
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
