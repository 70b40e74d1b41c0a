"""The objective of an attack: the loss of each sample, its gradient, and whether the classifier is fooled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.evaluation.attacks.ball import per_sample
from ibreg.prediction import predict_samples
from ibreg.regularized import named_bottlenecks, network_to_run

Loss = Callable[[Tensor, Tensor], Tensor]


class Judgement(NamedTuple):
    """Value and success of an attack, for each sample.

    Attributes:
        value: the value that is maximized, `(batch,)`: the loss, or minus the loss of a targeted attack.
        fooled: whether the attack has succeeded, `(batch,)`; False where there are no classes.
    """

    value: Tensor
    fooled: Tensor


class Objective:
    """The loss of each sample as a function of the input; the model must be in evaluation mode.

    Args:
        model: wrapped in `Regularized` or not.
        target: integers `(batch,)` are classes, floats are regression targets.
        loss: `loss(output, target)`, one value per sample; None: cross-entropy for integers, squared error for floats.
        expectation: 0: the mean code; n: the mean of the loss over n Monte Carlo samples of the noise, and the
            prediction by the mean softmax over them.
        targeted: whether the attack moves the output towards the target rather than away from it.

    Raises:
        ValueError: If the number of Monte Carlo samples is below 0, or the model has no stochastic bottleneck; if a
            module whose own forward runs a `Regularized` is given.
        RuntimeError: If called inside `torch.inference_mode()`.

    Warns:
        UserWarning: If there is a single Monte Carlo sample, or a gradient is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        target: Tensor,
        *,
        loss: Loss | None = None,
        expectation: int = 0,
        targeted: bool = False,
    ):
        if torch.is_inference_mode_enabled():
            raise RuntimeError("an attack needs gradients: call it outside of torch.inference_mode()")
        self.network = network_to_run(model)
        _check_expectation(self.network, expectation)
        self.target = target
        self.loss = loss or (squared_error if target.is_floating_point() else cross_entropy)
        self.expectation = expectation
        self.targeted = targeted
        self.has_classes = not target.is_floating_point() and target.dim() == 1

    @torch.no_grad()
    def judge(self, x: Tensor, noise_seed: int, rows: Tensor | None = None) -> Judgement:
        """Judges points of some samples.

        Args:
            x: points.
            noise_seed: seed of the Monte Carlo samples.
            rows: indices of the samples that they belong to; None: all samples.
        """
        return self._judgement(x, noise_seed, rows)

    @torch.enable_grad()
    def gradient(self, x: Tensor, noise_seed: int, rows: Tensor | None = None) -> tuple[Judgement, Tensor]:
        """Judges points, and returns the gradient of the value of each sample with respect to its point."""
        x = x.detach().requires_grad_()
        judgement = self._judgement(x, noise_seed, rows)
        value = judgement.value.sum()
        if not value.requires_grad:  # depends on neither the input nor a parameter
            return judgement, torch.zeros_like(x)
        # 0 where no gradient reaches the input, as with nearest keys: the attack fails, which the sanity checks reveal.
        (gradient,) = torch.autograd.grad(value, x, materialize_grads=True)
        blind = int((~gradient.flatten(1).isfinite()).any(1).sum())
        if blind:
            warnings.warn(
                f"the gradient of {blind} of {len(x)} samples is not finite and replaced by 0: the attack fails there, "
                "which does not make the model robust",
                stacklevel=2,
            )
            gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return Judgement(judgement.value.detach(), judgement.fooled), gradient

    def _judgement(self, x: Tensor, noise_seed: int, rows: Tensor | None) -> Judgement:
        target = self.target if rows is None else self.target[rows]
        if self.expectation == 0:
            outputs = [self._checked(self.network(x))]
        else:
            outputs = list(self._checked(predict_samples(self.network, x, draws=self.expectation, seed=noise_seed)))
        losses = torch.stack([self._losses(output, target) for output in outputs]).mean(0)
        return Judgement(-losses if self.targeted else losses, self._fooled(outputs, target))

    @torch.no_grad()
    def _fooled(self, outputs: list[Tensor], target: Tensor) -> Tensor:
        if not self.has_classes or outputs[0].dim() != 2:
            return torch.zeros(len(outputs[0]), dtype=torch.bool, device=outputs[0].device)
        decision = (outputs[0] if len(outputs) == 1 else torch.stack(outputs).softmax(2).mean(0)).argmax(1)
        return decision == target if self.targeted else decision != target

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        losses = self.loss(output, target)
        if losses.shape != (len(output),):
            raise ValueError(
                f"the loss must have one value per sample, shape {(len(output),)}, for an output of shape "
                f"{tuple(output.shape)}, got {tuple(losses.shape)}: use reduction='none', and sum over all other axes"
            )
        return losses

    @staticmethod
    def _checked(output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the attacked model must return a tensor, got {type(output).__name__}: wrap it in a module that "
                "returns the logits or the prediction"
            )
        return output


class Worst:
    """The worst visited point of each sample: one that fools the classifier first, then the one with the largest value.

    Args:
        x: initial points, `(batch, ...)`.
    """

    def __init__(self, x: Tensor):
        self.x = x.detach().clone()
        self.value = x.new_full((len(x),), -torch.inf)
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def meet(self, x: Tensor, judgement: Judgement, rows: Tensor) -> None:
        """Keeps the points that are worse than the previous ones.

        Args:
            x: points of some samples.
            judgement: their value and success.
            rows: indices of the samples that they belong to.
        """
        value, fooled = judgement.value.to(self.value), judgement.fooled
        worse = torch.where(fooled == self.fooled[rows], value > self.value[rows], fooled)
        self.x[rows] = torch.where(per_sample(worse, x), x, self.x[rows])
        self.value[rows] = torch.where(worse, value, self.value[rows])
        self.fooled[rows] |= fooled


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Returns the cross-entropy of each sample, in nats.

    Args:
        output: logits, `(batch, classes)`.
        target: class indices, `(batch,)`.

    Raises:
        ValueError: If shapes do not fit, or a target is no class.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    return F.cross_entropy(output, _checked_classes(output, target), reduction="none")


def margin(output: Tensor, target: Tensor) -> Tensor:
    r"""Returns the margin of the best other class over the target, above 0 where the prediction is incorrect.

    .. math:: \max_{c \neq y} z_c - z_y

    Unlike that of the cross-entropy its gradient does not vanish for confident networks (arXiv 1608.04644).

    Args:
        output: logits, `(batch, classes)`.
        target: class indices, `(batch,)`.

    Raises:
        ValueError: If shapes do not fit, or a target is no class.

    Example:
        >>> margin(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([1]))
        tensor([-2.])
    """
    target = _checked_classes(output, target).unsqueeze(1)
    others = output.scatter(1, target, -torch.inf)
    return others.amax(1) - output.gather(1, target).squeeze(1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Returns the squared error of each sample, summed over its outputs.

    Args:
        output: predictions, `(batch, ...)`.
        target: regression targets of the same shape; `(batch,)` and `(batch, 1)` fit each other.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
        tensor([0., 4.])
    """
    output, target = output.unsqueeze(-1).flatten(1), target.unsqueeze(-1).flatten(1)
    if output.shape != target.shape:
        raise ValueError(f"predictions {tuple(output.shape)} do not fit the targets {tuple(target.shape)}: pass loss=")
    return (output - target).square().sum(1)


def check_targets(x: Tensor, target: Tensor) -> None:
    """Checks that every input has a target.

    Raises:
        ValueError: If the numbers differ.
    """
    if x.shape[:1] != target.shape[:1]:
        raise ValueError(
            f"there must be one target per input, got {len(x)} inputs and targets of shape {tuple(target.shape)}"
        )


def _checked_classes(output: Tensor, target: Tensor) -> Tensor:
    if output.dim() != 2 or output.shape[1] < 2 or target.shape != output.shape[:1]:
        raise ValueError(
            f"a loss of classes needs logits (batch, 2 classes or more) and targets (batch,), got "
            f"{tuple(output.shape)} and {tuple(target.shape)}: pass loss="
        )
    if target.numel() and not 0 <= target.min() <= target.max() < output.shape[1]:
        raise ValueError(f"targets must be classes below {output.shape[1]}, got {target.min()} to {target.max()}")
    return target.long()


def _check_expectation(network: nn.Module, expectation: int) -> None:
    if not isinstance(expectation, int) or expectation < 0:
        raise ValueError(f"expectation must be an integer of at least 0, got {expectation!r}")
    if expectation and not any(layer.stochastic for layer in named_bottlenecks(network)):
        raise ValueError(
            f"expectation={expectation} needs a stochastic bottleneck, but the model has none: use expectation=0"
        )
    if expectation == 1:
        warnings.warn(
            "expectation=1 uses the gradient of a single Monte Carlo sample, which the noise masks: a model that "
            "withstands it may still fail under the mean over samples; use expectation=10 or more",
            stacklevel=4,
        )
