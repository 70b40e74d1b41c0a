"""Losses of regression, predictions over a data set, information of the code, and errors under attack."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from ibreg.evaluation.attacks.gradient import fgsm, pgd
from ibreg.evaluation.attacks.objective import squared_error
from ibreg.evaluation.regression import gaussian_information, regression_metrics
from ibreg.functional import cs_qmi
from ibreg.modes import captured, evaluating
from ibreg.prediction import predict
from ibreg.regularized import unwrap
from ibreg.runs.config.recipe import TrainingConfig
from ibreg.runs.config.section import Count, Different, NotNegative, Section, check_known
from ibreg.runs.data import regression as regression_data
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.regression_rows import RegressionData
from ibreg.runs.data.rows import Rows
from ibreg.runs.methods import is_stochastic
from ibreg.runs.models.normalization import network_inputs
from ibreg.runs.tasks.evaluation import evaluate
from ibreg.runs.tasks.regression import task_losses
from ibreg.runs.trials import SECOND, methods

# Number of rows that the information of code and input is measured on, as a mean over batches.
INFORMATION_ROWS = 1000


class Attack(Section):
    """FGSM and PGD on the selected models.

    Attributes:
        eps: L-inf radii, in units of pixels or standardized values; empty: no attack.
        steps: of PGD.
        rows: largest number of attacked test rows.
        draws: samples of the expectation over the code.
    """

    eps: Annotated[list[NotNegative], *Different]
    steps: Count
    rows: Count
    draws: Count


def _check_named(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("name") is None:
        raise PydanticCustomError("name", "no name")
    return options


# Name and options are checked where the loss is built.
TaskLoss = Annotated[
    dict[str, Any],
    AfterValidator(_check_named),
    Field(json_schema_extra={"valid": "a name and options, such as {name:huber,delta:2}"}),
]


class RegressionConfig(TrainingConfig):
    """The keys of the regression recipe.

    Attributes:
        data: the data set.
        split_by_seed: whether every seed has its own split of the data.
        task_loss: name and options of the loss.
        task_losses: those of some methods, instead.
        attack: the attacks on the selected models.
    """

    model_config = ConfigDict(title="regression")
    data: Annotated[SerializeAsAny[RegressionRequest], BeforeValidator(regression_data.request)]
    split_by_seed: bool
    task_loss: TaskLoss
    task_losses: dict[str, TaskLoss]
    attack: Attack

    @model_validator(mode="after")
    def _check_task_losses(self):
        known = ["none", *self.bottleneck]
        check_known("task_losses", self.task_losses, known)
        for method in methods(self):
            build_task_loss(self, method)
        return self


class Regressed(NamedTuple):
    """Predictions for one data set.

    Attributes:
        predictions: `(samples,)`, averaged over the sampled codes, in the unit of the target.
        targets: `(samples,)`, in the same unit.
        rate: nats per sample, summed over the bottlenecks that log one; None without any.
        cs_qmi: CS-QMI of input and mean code, nats.
    """

    predictions: Tensor
    targets: Tensor
    rate: float | None
    cs_qmi: float

    def metrics(self) -> dict[str, float]:
        """Returns all metrics by name; `information` is about the target, `cs_qmi` about the input."""
        metrics = regression_metrics(self.predictions, self.targets)
        metrics |= {"information": gaussian_information(metrics["r2"]), "cs_qmi": self.cs_qmi}
        return metrics if self.rate is None else metrics | {"rate": self.rate}


def regress(
    model: nn.Module,
    rows: Rows,
    data: RegressionData,
    accelerator: Accelerator,
    *,
    module: str,
    batch_size: int,
    draws: int = 0,
) -> Regressed:
    """Predicts a split of a data set, each rank its share of the rows.

    Args:
        model: with one output, wrapped in `Regularized` or not; its modes are restored.
        rows: the split.
        data: the data set, for the unit of the target.
        accelerator: gives rank and device.
        module: dotted name of the module whose output is the code.
        batch_size: that of training: rates and CS-QMI are computed per batch and depend on its size.
        draws: number of sampled codes that the output is averaged over, where there is a stochastic bottleneck; 0: the
            mean code.
    """
    (predictions, targets), rate = evaluate(
        model, rows, accelerator, _mean_and_target, batch_size=batch_size, draws=draws
    )
    information = code_information(
        model, rows.inputs[:INFORMATION_ROWS].to(accelerator.device), module=module, batch_size=batch_size
    )
    return Regressed(data.in_units(predictions).squeeze(1), data.in_units(targets).squeeze(1), rate, information)


def _mean_and_target(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.float().mean(0), targets


@torch.no_grad()
def code_information(model: nn.Module, inputs: Tensor, *, module: str, batch_size: int) -> float:
    """Measures the CS-QMI of inputs and mean code, in nats; the code of a control is the output of the same module.

    It is the mean over batches, without an incomplete last one unless it is the only one, with the default bandwidths
    of `functional.cs_qmi`.

    Args:
        model: wrapped in `Regularized` or not; its modes are restored.
        inputs: `(samples, ...)`, at least 2.
        module: dotted name of the module whose output is the code.
        batch_size: samples in a batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        >>> code_information(model, torch.randn(50, 3), module="0", batch_size=25) > 0
        True
    """
    batches = inputs.split(batch_size)
    batches = batches[: max(len(inputs) // batch_size, 1)]
    with captured(unwrap(model).get_submodule(module), "output") as codes, evaluating(model):
        for batch in batches:
            model(batch)
    values = [
        cs_qmi(network_inputs(model, batch).flatten(1), code.flatten(1).float())
        for batch, code in zip(batches, codes, strict=True)
    ]
    return float(torch.stack(values).double().mean())


def errors_under_attack(
    model: nn.Module, data: RegressionData, options: Attack, device: torch.device, *, draws: int = 0
) -> dict[str, float]:
    """Measures the RMSE of the first test rows, in the unit of the target, without attack and under FGSM and PGD.

    A stochastic model is attacked twice, by the gradient of the mean code and by that of the expectation over sampled
    codes; each row keeps the larger of the two errors.

    Args:
        model: wrapped in `Regularized` or not.
        data: its test rows are attacked: `eps` is the largest change of a pixel in [0, 1], or of a standardized value.
        options: `eps`, `steps`, `rows` and `draws`, the number of sampled codes of the expectation.
        device: of the model.
        draws: number of sampled codes at prediction; 0: the mean code.

    Returns:
        `rmse_<attack>_<eps>`, with `fgsm` and `pgd` at eps 0 (the same rows without attack) and each of `eps`.
    """
    rows = list(range(min(options.rows, len(data.test))))
    x, y = (part.to(device) for part in data.test.__getitems__(rows))
    stochastic = is_stochastic(model)
    attacks = {"fgsm": fgsm, "pgd": lambda *args, **kwargs: pgd(*args, steps=options.steps, **kwargs)}

    def squared_errors(inputs: Tensor) -> Tensor:
        predictions = predict(model, inputs, draws=draws if stochastic else 0, seed=0, mean="output")
        return squared_error(predictions, y)

    rmse = {}
    for name, attack in attacks.items():
        for eps in sorted({0.0, *options.eps}):
            errors = squared_errors(x)
            if eps > 0:
                reached = [
                    squared_errors(attack(model, x, y, eps=eps, expectation=expectation, clamp=data.value_range))
                    for expectation in ((0, options.draws) if stochastic else (0,))
                ]
                errors = torch.stack(reached).amax(0)
            rmse[f"rmse_{name}_{eps:g}"] = data.target_std * float(errors.double().mean().sqrt())
    return rmse


def build_task_loss(cfg: RegressionConfig, method: str) -> nn.Module:
    """Builds the task loss of a method: its own in `task_losses`, else `task_loss`.

    Raises:
        ValueError: If there is no such loss, or it does not have an option or accept its value.
    """
    method = SECOND.get(method, method)
    own = method in cfg.task_losses
    options, section = (cfg.task_losses[method], f"task_losses.{method}") if own else (cfg.task_loss, "task_loss")
    return task_losses.build(section=section, **options)


def check_data(data: RegressionData) -> None:
    """Checks that the targets of the validation and test splits vary.

    Raises:
        ValueError: If one of them has fewer than two different targets, for which R² is undefined.
    """
    for name, part in (("validation", data.validation), ("test", data.test)):
        if part is not None and np.unique(part.targets).size < 2:
            raise ValueError(
                f"the {name} part of {data.name} has {len(part)} rows of one target: R² needs targets that vary, so "
                f"give it a larger share, data.{name}"
            )
