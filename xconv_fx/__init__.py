"""Sketched activations for convolutional networks, as a torch.compile backend.

``torch.compile(model, backend="xconv")`` needs no import of this package. Import it for the
audit (:func:`last_report`, :func:`all_reports`, :func:`step_report`), the drop-in layers
(``xconv_fx.nn``), :func:`exact`, which keeps a part of a model exact, :func:`calibrate`, which
measures what sketches do to a model's gradients, plans as files (:func:`save_plans`,
:func:`load_plans`, :func:`compare_plans`), and :func:`measure_machine_balance`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "all_reports",
    "calibrate",
    "compare_plans",
    "exact",
    "last_report",
    "load_plans",
    "measure_machine_balance",
    "nn",
    "save_plans",
    "step_report",
]


def __getattr__(name: str) -> Any:
    """Load on first use, so that importing the package stays light."""
    if name in ("last_report", "all_reports"):
        return getattr(importlib.import_module("xconv_fx.audit"), name)
    if name in ("save_plans", "load_plans", "compare_plans"):
        return getattr(importlib.import_module("xconv_fx.plans"), name)
    if name == "step_report":
        return importlib.import_module("xconv_fx.backend").step_report
    if name == "calibrate":
        return importlib.import_module("xconv_fx.calibration_run").calibrate
    if name == "measure_machine_balance":
        return importlib.import_module("xconv_fx.machine").measure_machine_balance
    if name == "exact":
        return importlib.import_module("xconv_fx.regions").exact
    if name == "nn":
        return importlib.import_module("xconv_fx.nn")
    msg = f"module 'xconv_fx' has no attribute {name!r}"
    raise AttributeError(msg)
