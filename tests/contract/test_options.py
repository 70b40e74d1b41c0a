"""Options of every registered bottleneck: documented, configured, checked, and each of them changes a number."""

import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

import ibreg
from ibreg import registry
from ibreg.layers.intervention import intervening
from tests.contract.table import BATCH, CLASSES, CONCEPTS, FEATURES, every_name, needed

CONFIGS = Path(__file__).parents[2] / "configs" / "bottleneck"


class Change(NamedTuple):
    """Another value of an option, the further options that it acts with, and the target where that matters."""

    to: Any
    base: dict[str, Any] = {}
    target: str = "classes"


class Same(NamedTuple):
    """Another value of an option that changes no number in one process, and why."""

    to: Any
    why: str
    base: dict[str, Any] = {}


COMMON = {"beta": 0.7, "dim": 1}
KERNEL = {"dim": Change(1, {"positions": "mean"})}  # the kernels of flattened codes do not see an order of the axes
ENCODER = {"out_features": 4, "start": Change("identity")}
PAIRS = {
    "block_size": Same(3, "rows of pairs visited at once: it changes time and memory alone"),
    "gather": Same(True, "the batch of all processes is that of the one process"),
}
CONCEPT = {
    "concepts": 2,
    "out_features": Change(4, {"head": "linear"}),
    "head": "mlp",
    "pos_weight": 3.0,
}
HEAD_PENALTY = {"head_l1": 0.3, "head_l2": 0.3, "head_prior": Change([[1, 0, -1]] * FEATURES, {"head_l2": 0.1})}

# Another valid value of each option but in_features; a plain value stands for `Change(value)`.
CHANGES = {
    "cauchy_schwarz": ENCODER
    | PAIRS
    | KERNEL
    | {
        "start": Change("identity", {"stochastic": True}),
        "bandwidth_x": 2.0,
        "bandwidth_t": ("rms", 1.0),
        "normalized": True,
        "normalize_code": Change(False, {"bandwidth_t": 2.0}),
        "stochastic": True,
        "positions": "mean",
    },
    "codebook": {"codes": 20, "top_k": 2},
    "concept": CONCEPT | HEAD_PENALTY | {"code": "hard", "residual": 2},
    "concept_embedding": CONCEPT | {"embedding_features": 3, "intervention_probability": 0.9},
    "distance_aware": ENCODER | {"gaussians": 3, "temperature": Change(0.2, {"uniform_steps": 0}), "uniform_steps": 0},
    "dropout": {
        "beta": Same(0.7, "the penalty is 0"),
        "rate": 0.2,
        "dim": Same(1, "it names the axis of in_features alone"),
    },
    "gaussian_channel": {"noise": 0.3, "learned": True},
    "hsic": PAIRS
    | KERNEL
    | {
        "lambda_x": 3.0,
        "lambda_y": 0.5,
        "estimator": "cka",
        "bandwidth_x": 2.0,
        "bandwidth_t": ("rms", 2.0),
        "bandwidth_y": Change(0.3, target="values"),
        "kernel_y": Change("linear", target="values"),
        "stop_gradient": True,
        "positions": "mean",
    },
    "key_value": {
        "beta": Change(0.7, {"straight_through": True}),
        "out_features": 4,
        "codebooks": 3,
        "pairs": 16,
        "key_features": 4,
        "splitter": Change("learned", {"straight_through": True}),
        "decoder": "linear",
        "value_features": Change(5, {"decoder": "linear"}),
        "top_k": 2,
        "search": "product",
        "straight_through": True,
        "sparse_gradients": True,
    },
    "nonlinear": ENCODER
    | PAIRS
    | {
        "lagrangian": "exponential",
        "power": Change(0.5, {"lagrangian": "power"}),
        "initial_log_variance": 4.0,
    },
    "post_hoc_concept": HEAD_PENALTY | {"concepts": 2, "code": "hard", "hybrid": True, "out_features": 4},
    "probabilistic_concept": CONCEPT | {"embedding_features": 3, "samples": 5, "rate_weight": 0.1},
    "stochastic_concept": CONCEPT
    | {"code": "logit", "covariance": "global", "samples": 5, "precision_weight": 0.1, "certainty": 0.7},
    "variational": ENCODER
    | {
        "prior": "learned",
        "classes": Change(CLASSES + 1, {"prior": "conditional", "classes": CLASSES}),
        "rate": "monte_carlo",
        "lagrangian": "exponential",
        "power": Change(0.5, {"lagrangian": "power"}),
        "alpha": 0.5,
    },
}
# What a layer is built with, where its defaults do not do or are slow.
BASES = {
    "codebook": {"codes": 12, "top_k": 3},
    "concept": {"concepts": CONCEPTS, "head": "linear"},
    "concept_embedding": {"concepts": CONCEPTS},
    "key_value": {"codebooks": 2, "pairs": 9, "key_features": 2},
    "nonlinear": {"initial_log_variance": 3.0},  # a saturated rate has no gradient
    "post_hoc_concept": {"concepts": CONCEPTS},
    "probabilistic_concept": {"concepts": CONCEPTS},
    "stochastic_concept": {"concepts": CONCEPTS},
}


def changes_of(name):
    given = COMMON | CHANGES.get(name, {})
    return {option: change if isinstance(change, Change | Same) else Change(change) for option, change in given.items()}


OPTIONS = [pytest.param(name, option, id=f"{name}-{option}") for name in ibreg.names() for option in changes_of(name)]


def numbers(name, options, target):
    """All that can be seen of a layer: parameters, codes, penalty, logs, gradients, and what an intervention does."""
    torch.manual_seed(0)
    layer = ibreg.build(name, in_features=FEATURES, **options)
    x = torch.randn(BATCH, FEATURES, FEATURES, generator=torch.Generator().manual_seed(1))
    x.requires_grad_(getattr(layer, "straight_through", True))
    further = needed(layer)
    if "concepts" in further:
        further["concepts"] = further["concepts"][:, : len(layer.concepts)]
    if "target" in further and target == "values":
        further["target"] = torch.linspace(-1, 1, BATCH).sin()
    seen = {f"state {key}": value.clone() for key, value in layer.state_dict().items() if key != "beta"}
    torch.manual_seed(2)
    output, penalty, logs = ibreg.Regularized(torch.nn.Sequential(layer))(x, **further)
    seen |= {"output": output, "penalty": penalty, **logs}
    ((output - 1).square().mean() + penalty).backward()
    gradients = {"x": x, **dict(layer.named_parameters())}
    seen |= {f"gradient {key}": value.grad for key, value in gradients.items() if value.grad is not None}
    seen |= {f"moved {key}": value.clone() for key, value in layer.named_buffers() if key != "beta"}
    seen["evaluated"] = layer.eval()(x)
    if "concepts" in registry.options(name):
        mask = torch.zeros(BATCH, len(layer.concepts), dtype=torch.bool)
        mask[:, 0] = True
        with intervening({layer: ibreg.ConceptIntervention(mask, torch.ones(mask.shape))}):
            seen["intervened"] = layer(x)
            if hasattr(layer, "gaussian"):
                seen["conditioned"] = layer.gaussian(x)[0]
    return {key: value.detach() for key, value in seen.items()}


def are_close(left, right):
    return left.keys() == right.keys() and all(
        left[key].shape == right[key].shape
        and left[key].layout == right[key].layout
        and torch.allclose(left[key].to_dense(), right[key].to_dense(), rtol=1e-4, atol=1e-7)
        for key in left
    )


@every_name
def test_every_option_has_an_entry(name):
    options = set(registry.options(name)) - {"in_features"}
    missing = options - set(changes_of(name))
    assert not missing, (
        f"add to the table CHANGES of {__file__}, under {name!r}, another valid value of {sorted(missing)}: "
        "'option': value, or Change(value, {further options it acts with}), or Same(value, 'why it changes no number')"
    )
    assert set(changes_of(name)) == options


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@pytest.mark.filterwarnings("ignore:the rate of bottleneck .* is above 0.98 of log")
def test_every_option_changes_a_number(name, option):
    change = changes_of(name)[option]
    base = BASES.get(name, {}) | change.base
    target = getattr(change, "target", "classes")
    before, after = (numbers(name, options, target) for options in (base, base | {option: change.to}))
    assert are_close(before, numbers(name, base, target))
    if isinstance(change, Same):
        assert are_close(before, after), f"{option} of {name} changes a number, though: {change.why}"
    else:
        assert not are_close(before, after), f"{option} of {name} changes nothing"


@every_name
def test_in_features_are_checked(name):
    layer = ibreg.build(name, in_features=FEATURES + 1, **BASES.get(name, {}))
    with pytest.raises(ValueError, match=f"takes {FEATURES + 1} features on axis 1"):
        layer.eval()(torch.zeros(BATCH, FEATURES))


@every_name
def test_docstring(name):
    cls = registry.find(name)
    documentation = inspect.getdoc(cls)
    assert "Args:" in documentation
    assert ">>> " in documentation
    for option in (*registry.options(name), "device"):
        assert f"    {option}: " in documentation


@every_name
def test_every_option_has_a_constraint_and_every_constraint_is_of_an_option(name):
    cls = registry.find(name)
    assert cls.defaults().keys() <= cls.constraints.keys()
    # A base class may check options that a subclass sets itself.
    bases = [base for base in cls.__mro__[1:] if issubclass(base, ibreg.Bottleneck)]
    assert cls.constraints.keys() <= {option for owner in (cls, *bases) for option in owner.defaults()}


@every_name
def test_yaml_holds_every_option_with_its_default(name):
    path = CONFIGS / f"{name}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    expected = registry.options(name)
    del expected["in_features"]
    assert config == json.loads(json.dumps(expected))  # YAML has no tuples
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("  # " in line for line in lines[1:] if line)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"'variatonal' \(did you mean 'variational'\?\): choose one of .*variational"):
        ibreg.build("variatonal")


@every_name
def test_unknown_option_lists_the_valid_ones(name):
    said = r"has no option 'betta' \(did you mean 'beta'\?\): choose from in_features, .*beta.* device, dtype"
    with pytest.raises(ValueError, match=said):
        ibreg.build(name, betta=1)


def test_names_are_unique_lower_case_identifiers():
    assert ibreg.names() == sorted(set(ibreg.names()))
    with pytest.raises(ValueError, match="lower-case identifier"):
        ibreg.register("Not-a-name")
    with pytest.raises(ValueError, match="belongs to VariationalBottleneck already"):
        ibreg.register("variational")(type("Other", (ibreg.Bottleneck,), {}))
