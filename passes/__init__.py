"""The generic middle end on joint graphs: graph in, new graph out.

Data flows one way::

    expose -> estimate -> plan -> sketch -> partition -> lower

:func:`run` is that sequence. Ops and codecs come in as data (:class:`Rules`); nothing here
imports ``xconv_fx``.
"""

from passes.decompose import decompose
from passes.estimate import CostTable, ValueCost, estimate_costs
from passes.joint import JointGraph
from passes.partition import Partition, partition, partition_exact
from passes.pipeline import Outcome, run
from passes.plan import Action, Decision, Plan, make_plan
from passes.plan_record import PlanMismatchError, PlanRecord, record_plan
from passes.rules import Codec, LinearUse, Rules
from passes.sketch import apply_plan
from passes.verify import VerifierError

__all__ = [
    "Action",
    "Codec",
    "CostTable",
    "Decision",
    "JointGraph",
    "LinearUse",
    "Outcome",
    "Partition",
    "Plan",
    "PlanMismatchError",
    "PlanRecord",
    "Rules",
    "ValueCost",
    "VerifierError",
    "apply_plan",
    "decompose",
    "estimate_costs",
    "make_plan",
    "partition",
    "partition_exact",
    "record_plan",
    "run",
]
