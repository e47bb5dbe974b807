"""Three papers in one objective, by arguments alone: one run on SmolLM2, beside plain DPO.

python docs/examples/combine.py
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import tokenry
from tokenry.core.divergences import divergence_named
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tab_po import BarrierTerm, FieldWeight
from tokenry.learn.preference.tdpo import KLMargin
from tokenry.learn.preference.weighted import PreferenceObjective
from tokenry.learn.reference import WithoutAdapter
from tokenry.learn.report import preference_report
from tokenry.tasks.preferences import helpful_pairs

mixed = PreferenceObjective(
    beta=0.1,
    weight=FieldWeight(difference=1.5),  # TAB-PO: tokens in which the answers differ count more
    margin=KLMargin(alpha=0.5),  # TDPO: the rejected answer's drift is held down
    link=divergence_named("jensen_shannon_sum").derivative,  # f-DPO: a bounded reward
    terms=(BarrierTerm(tau=0.3, strength=0.1),),  # TAB-PO: chosen tokens do not sink
)


def compare(model: Any = "smollm2", **settings: Any) -> dict[str, Any]:
    """The held-out report of the mixture and of DPO, trained alike."""
    reports = {}
    for name, objective in (("mixed", mixed), ("dpo", DPO(beta=0.1))):
        loaded = tokenry.load(model) if isinstance(model, str) else copy.deepcopy(model)
        with tempfile.TemporaryDirectory() as folder:
            run = tokenry.train(
                objective,
                helpful_pairs("train"),
                loaded,
                Path(folder) / name,
                lora={"r": 8},
                **{
                    "as_chat": True,
                    "learning_rate": 5e-4,
                    "max_steps": 4,
                    "per_device_train_batch_size": 2,
                    "seed": 0,
                    **settings,
                },
            )
            reports[name] = preference_report(
                run.model,
                loaded[1],
                helpful_pairs("heldout"),
                WithoutAdapter(run.model),
                as_chat=settings.get("as_chat", True),
            )
    return reports


if __name__ == "__main__":
    for name, report in compare(disable_tqdm=True).items():
        print(
            f"{name:6} accuracy {report.accuracy:.2f}  margin {report.margin:.2f}  "
            f"KL chosen {report.kl_chosen:.3f}, rejected {report.kl_rejected:.3f} nats a token"
        )
