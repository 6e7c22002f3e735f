"""The generic middle end on joint graphs: graph in, new graph out.

Data flows one way::

    expose -> estimate -> plan -> sketch -> partition -> lower

:func:`run` is that sequence. Ops and codecs come in as data (:class:`Rules`); nothing here
imports ``xconv_fx``.
"""

from passes.budget import BudgetedPlan, plan_within, plan_within_peak, refine
from passes.decompose import decompose
from passes.derive import Derivation
from passes.estimate import CostTable, ValueCost, estimate_costs
from passes.falling_peaks import plan_below
from passes.joint import JointGraph
from passes.liveness import MemoryEstimate, predict_memory
from passes.partition import Partition, kept_exactly, partition, partition_exact
from passes.pipeline import Outcome, at_price, run
from passes.plan import Action, Decision, Plan, make_plan
from passes.plan_record import PlanMismatchError, PlanRecord, record_plan
from passes.rules import Codec, LinearUse, Rules
from passes.sketch import apply_plan
from passes.verify import VerifierError

__all__ = [
    "Action",
    "BudgetedPlan",
    "Codec",
    "CostTable",
    "Decision",
    "Derivation",
    "JointGraph",
    "LinearUse",
    "MemoryEstimate",
    "Outcome",
    "Partition",
    "Plan",
    "PlanMismatchError",
    "PlanRecord",
    "Rules",
    "ValueCost",
    "VerifierError",
    "apply_plan",
    "at_price",
    "decompose",
    "estimate_costs",
    "kept_exactly",
    "make_plan",
    "partition",
    "partition_exact",
    "plan_below",
    "plan_within",
    "plan_within_peak",
    "predict_memory",
    "refine",
    "record_plan",
    "run",
]
