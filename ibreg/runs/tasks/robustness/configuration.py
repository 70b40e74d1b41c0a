"""The keys of the robustness recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from ibreg.evaluation.attacks.ensemble import STANDARD
from ibreg.runs.config.recipe import TrainingConfig
from ibreg.runs.config.section import (
    Count,
    Different,
    Name,
    NotNegative,
    Positive,
    Section,
    check_known,
    one_of,
)
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.split import Request
from ibreg.runs.methods import Modules
from ibreg.runs.tasks.robustness.adversarial import AdversarialTraining
from ibreg.runs.tasks.robustness.distillation import Distillation


class Attack(Section):
    """FGSM, PGD and an ensemble of attacks on the selected models.

    Attributes:
        eps: largest changes of a pixel in [0, 1], or of a standardized value of a table; empty: none.
        eps_l2: Euclidean lengths of the change; empty: none.
        steps: number of PGD steps.
        step_size: of L-inf PGD; None: 2.5 eps / steps.
        restarts: number of PGD restarts.
        rows: largest number of attacked test rows.
        draws: Monte Carlo samples of the expectation over the code.
        ensemble: names of further attacks.
    """

    eps: Annotated[list[NotNegative], *Different]
    eps_l2: Annotated[list[NotNegative], *Different]
    steps: Count
    step_size: Positive | None
    restarts: Count
    rows: Count
    draws: Count
    ensemble: Annotated[list[Annotated[str, *one_of(STANDARD)]], Field(examples=[["square"]]), *Different]


class Corruption(Section):
    """Corrupted test rows.

    Attributes:
        kinds: kinds of corruption; None: all that the inputs allow.
        severities: from 1 (mild) to 5 (severe).
        rows: largest number of test rows; 0: no corruption.
    """

    kinds: Annotated[list[str], Field(min_length=1, examples=[["jpeg"]]), *Different] | None
    severities: Annotated[
        list[Annotated[int, Field(ge=1, le=5)]],
        Field(min_length=1),
        *Different,
        Field(
            json_schema_extra={
                "valid": "a list of one or more different integers from 1 to 5, such as [2,4] (none: corruption.rows=0)"
            }
        ),
    ]
    rows: Annotated[int, Field(ge=0)]


class OutOfDistribution(Section):
    """Out-of-distribution inputs.

    Attributes:
        data: a data set of the same shape, noise, or None.
        rows: largest number of in-distribution and of OOD inputs.
    """

    data: str | None
    rows: Count


class Sanity(Section):
    """The sanity checks of the attacks.

    Attributes:
        rows: largest number of test rows.
        steps: of PGD, whose accuracy must not rise.
    """

    rows: Count
    steps: Annotated[list[Count], Field(min_length=1, examples=[[10, 100]]), *Different]


class RobustnessConfig(TrainingConfig):
    """The keys of the robustness recipe.

    Attributes:
        data: the data set.
        checkpoint: folder of a finished run whose models are measured; None: models are trained.
        places: modules of some bottlenecks, instead of `inject_at`.
        decayed_control: weight decay of a third control; 0: none.
        adversarial: training on attacked inputs.
        distillation: all methods start from the pruned teacher, which is distilled into them.
        attack: attacks on the selected models.
        corruption: corrupted test rows.
        ood: out-of-distribution inputs.
        sanity: sanity checks of the attacks.
    """

    model_config = ConfigDict(title="robustness")
    data: Annotated[SerializeAsAny[Request], BeforeValidator(datasets.request)]
    checkpoint: Annotated[Name | None, Field(json_schema_extra={"valid": "the folder of a finished run, or null"})]
    places: dict[str, Modules]
    decayed_control: NotNegative
    adversarial: AdversarialTraining
    distillation: Distillation
    attack: Attack
    corruption: Corruption
    ood: OutOfDistribution
    sanity: Sanity

    @model_validator(mode="after")
    def _check_methods(self):
        check_known("places", self.places, self.bottleneck)
        if not self.control and len(self.seeds) * len(self.bottlenecks) < 2:
            raise ValueError("the sanity checks need a second model: control=true, another seed or another bottleneck")
        return self
