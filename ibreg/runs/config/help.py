"""`--help` of a recipe: each key with its value and the comment of its YAML, the choices of each group, examples."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ibreg import registry
from ibreg.runs.config.comments import Entry, entries, in_columns, paragraphs
from ibreg.runs.config.package_data import BOTTLENECK, EXPERIMENT, as_launched, first_paragraph, head
from ibreg.runs.config.terminal import terminal_width
from ibreg.runs.data import classification, concepts, regression, streams

# Recipes whose data sets are not all those of classification.
DATA_SETS: dict[str, Callable[[], list[str]]] = {
    "concepts": concepts.names,
    "regression": regression.names,
    "continual": streams.names,
}
ON_IMAGES = ("finetune",)
# Names of controls as well, see `trials.CONTROLS`: to be compared as a bottleneck, such a layer needs another name,
# +bottleneck.another={name:dropout}.
CONTROL_LAYERS = ("dropout",)
# Groups that are made from classes, without files.
WITHOUT_FILES = {"optimizer": "of torch.optim, with its options and defaults there; lr and weight_decay are keys above"}
Entries: TypeAlias = dict[tuple[str, ...], Entry]
# Words of a command line, and what they mean.
NOTES = {
    "data.validation=0.2": "a key in a section, by its path",
    "'seeds=[0]'": "quoted, as zsh asks for where there are brackets, and every shell where there are spaces or braces",
    "bottleneck.<name>.<option>=value": "an option; listed are those of bottlenecks=[...]: name others there",
    "bottlenecks=[mine] '+bottleneck.mine={name:dropout,rate:0.2}'": "a method of your own; + adds a key",
    "--multirun epochs=1,5": "a run for each of several values",
    "--cfg job": "prints the configuration instead of running it; --hydra-help: all such flags",
    "ibreg list": "describes all that can be chosen, in a line each; ibreg list NAME: explains one, with its keys",
}


def recipe_help(*, _root_: DictConfig) -> str:
    """Returns the text of `--help`, as a resolver of OmegaConf for `hydra.help.template`.

    Args:
        _root_: the composed configuration, which OmegaConf passes; `hydra.help` has the header, and examples as footer.
    """
    hydra, width = _root_.hydra, terminal_width()
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    composed: Any = OmegaConf.to_container(_root_, resolve=False)
    chosen = composed.pop("hydra")["runtime"]["choices"]
    sections = [paragraphs(hydra.help.header.strip(), width)]
    if experiment := _yaml(folders, EXPERIMENT, chosen.get(EXPERIMENT)):
        sections += [f"experiment={chosen[EXPERIMENT]}", paragraphs(as_launched(head(experiment)), width)]
    own_yaml = next(path for folder in folders if (path := folder / f"{hydra.job.config_name}.yaml").is_file())
    groups = _groups(own_yaml)
    keys = [*_keys(own_yaml, folders, composed, {group: chosen[group] for group in groups if group in chosen}, width)]
    required = "; ??? needs a value" if any("???" in line for line in keys) else ""
    sections += [
        "\n".join([f"Keys: key=value{required}", *keys]),
        "\n".join(["Choices: group=choice", "", *_choices(own_yaml.stem, folders, composed, groups, width)]),
        "\n".join(["Command line", "", *(in_columns(f"  {words}", said, width) for words, said in NOTES.items())]),
        f"Examples\n\n{textwrap.indent(as_launched(hydra.help.footer.strip()), '  ')}",
    ]
    return "\n\n".join(sections).replace("$", "$$")  # Hydra fills the text in, as a string.Template


def _keys(
    own_yaml: Path, folders: Sequence[Path], composed: Mapping[str, Any], chosen: Mapping[str, str], width: int
) -> Iterator[str]:
    """Yields the recipe's own keys and the sections of the chosen files, with the values that they have now."""
    sections = {group: composed[group] for group in chosen if group in composed}
    named = composed["bottlenecks"] if isinstance(composed["bottlenecks"], list) else []
    methods = {name: options for name, options in composed[BOTTLENECK].items() if name in named and options}
    known: Entries = {(BOTTLENECK,): Entry("", "", False)}
    for group in sections:
        known |= _of_file(folders, group, chosen[group], (group,))
    for method, options in methods.items():
        known |= _of_file(folders, BOTTLENECK, options.get("name", method), (BOTTLENECK, method))
    # A key has the recipe's comment if there is one, but a section has the description of its file.
    for path, entry in entries(own_yaml.read_text(encoding="utf-8")).items():
        if path not in known or (entry.comment and path not in {(group,) for group in sections}):
            known[path] = entry
    own = {key: value for key, value in composed.items() if key not in (*sections, BOTTLENECK)}
    for part in (own, *({group: section} for group, section in sections.items()), {BOTTLENECK: methods}):
        yield from ("", *_rows((), part, known, width))


def _of_file(folders: Sequence[Path], group: str, choice: str, at: tuple[str, ...]) -> Entries:
    """Returns the entries of a chosen YAML, where they are in the configuration, under its description."""
    path = _yaml(folders, group, choice)
    if path is None and group in WITHOUT_FILES:
        return {at: Entry("", f"{choice}, {WITHOUT_FILES[group]}", False)}
    if path is None:  # a user's own bottleneck, whose docstring explains its options
        known = group == BOTTLENECK and choice in registry.names()
        return {at: Entry("", first_paragraph(registry.find(choice).__doc__ or ""), False)} if known else {}
    found = entries(path.read_text(encoding="utf-8"))
    description = first_paragraph(head(path))
    section = Entry("", description if at[-1] == choice else f"{choice}: {description}", False)
    return {at: section} | {(*at, *keys): entry for keys, entry in found.items()}


def _rows(at: tuple[str, ...], section: Mapping[str, Any], known: Entries, width: int) -> Iterator[str]:
    """Yields the lines of a section; a value stays as the YAML writes it, unless something has changed it."""
    for number, (key, value) in enumerate(section.items()):
        path = (*at, str(key))
        entry = known.get(path, Entry(_inline(value), "", False))
        if entry.spaced and number:
            yield ""
        nested = isinstance(value, dict) and not entry.value
        text = "" if nested else entry.value if _parsed(entry.value) == value else _inline(value)
        yield in_columns(f"{'  ' * len(at)}{key}: {text}".rstrip(), entry.comment, width)
        if nested:
            yield from _rows(path, value, known, width)


def _groups(own_yaml: Path) -> list[str]:
    """Lists the groups in the recipe's list of defaults, from each of which one file is chosen."""
    config: Any = OmegaConf.to_container(OmegaConf.load(own_yaml))
    groups = [str(group) for entry in config["defaults"] if isinstance(entry, dict) for group in entry]
    return [group for group in groups if " " not in group and group != BOTTLENECK]


def _choices(
    recipe: str, folders: Sequence[Path], composed: Mapping[str, Any], groups: Sequence[str], width: int
) -> Iterator[str]:
    """Yields the choices of each group and of bottlenecks, as the files and the registry have them."""
    files = {group: [path for folder in folders for path in (folder / group).glob("*.yaml")] for group in groups}
    choices = {group: sorted(path.stem for path in paths if fits(path, recipe)) for group, paths in files.items()}
    for group in WITHOUT_FILES.keys() & choices.keys():
        choices[group] = sorted(Path(name).stem for name in ConfigStore.instance().list(group))
    choices["bottlenecks=[...]"] = sorted(set(composed[BOTTLENECK]) - set(CONTROL_LAYERS))
    column = max(map(len, choices)) + 4
    for group, names in choices.items():
        listed = textwrap.fill(", ".join(names), width - column, break_on_hyphens=False)
        yield f"  {group}".ljust(column) + textwrap.indent(listed, " " * column).lstrip()


def fits(path: Path, recipe: str) -> bool:
    """Whether a recipe takes what a YAML configures: a data set that its loader knows, an experiment of its own."""
    keys = {path[0]: entry.value for path, entry in entries(path.read_text(encoding="utf-8")).items()}
    if path.parent.name == EXPERIMENT:
        return keys.get("recipe") == recipe
    if path.parent.name == "data":
        known = keys.get("name") in DATA_SETS.get(recipe, classification.names)()
        return known and (recipe not in ON_IMAGES or "mean" in keys)
    return True


def _yaml(folders: Sequence[Path], group: str, choice: str | None) -> Path | None:
    """Returns the YAML of a choice, which may lie in a folder of the user's, `--config-dir`."""
    paths = [folder / group / f"{choice}.yaml" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def _parsed(text: str) -> Any:
    """Reads a value as OmegaConf does, to which 1e-3 is a number."""
    config: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
    return config["value"]


def _inline(value: Any) -> str:
    """Writes a value in YAML's flow style, in one line."""
    text = yaml.safe_dump([value], default_flow_style=True, width=float("inf"), sort_keys=False).strip()[1:-1]
    return re.sub(r"\b(\d+)\.0e-0*(\d)", r"\1e-\2", text)  # 1.0e-05 as it is typed
