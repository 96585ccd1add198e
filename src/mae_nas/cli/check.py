"""A composed configuration against the constructors it names: names, types, ranges.

The constructors' own signatures are the schema, so a class of the user's is checked like ours.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from mae_nas.checks import Checked, raise_all
from mae_nas.cli.assemble import NODES, OPTIMIZERS, Maker, judge
from mae_nas.cli.build import FACTS, import_class, import_target, prefixed
from mae_nas.cli.hints import describe, example, fits
from mae_nas.cli.run import Config
from mae_nas.cli.spelling import suggest

Judge = Callable[[Config, Collection[str]], list[str]]
TRUSTED = ("mae_nas.", "torch.optim.")
Target = Callable[..., object]
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class Root(Checked):
    """The keys that belong to no plug-in, checked like every constructor."""

    name: str
    seed: int
    resume: str | None
    left_out: list[str]

    def _problems(self) -> Iterator[str]:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            yield f"name: {self.name!r} is not a folder name (letters, digits, . _ -)"
        if not 0 <= self.seed < 2**32:
            yield f"seed: {self.seed} is not within 0 and {2**32 - 1}"


@dataclass(frozen=True, kw_only=True)
class SearchRoot(Root):
    """Of a search."""

    on_collapse: Literal["warn", "stop"]
    genotype: str | None = None  # there with relaxation=fixed


@dataclass(frozen=True)
class Layout:
    """What the configuration of a command consists of.

    Args:
        nodes: sections, and what the class of each must be.
        optimizers: sections inside those, likewise.
        root: the keys beside them.
        judge: says what does not fit together, given the sections that are wrong already.
    """

    nodes: Mapping[str, type]
    optimizers: Mapping[str, type]
    root: type[Root]
    judge: Judge


SEARCH = Layout(NODES, OPTIMIZERS, SearchRoot, judge)


def check(
    config: Mapping[str, Any], named: Collection[str] | None = None, layout: Layout = SEARCH
) -> None:
    """Raise one ValueError with a line per mistake, or nothing.

    Args:
        config: composed, or read back from a run.
        named: None for a configuration that the user composed just now. One that was read back is
            data (method, "a run folder from a stranger"): only names under `mae_nas`, optimizers of
            torch and the classes `named` on the present command line are imported.
        layout: of the command's configuration.
    """
    nodes = dict(_nodes(config))
    problems = list(_structure_problems(config, nodes, layout))
    problems += [_refusal(p, n["_target_"]) for p, n in nodes.items() if not _may_import(n, named)]
    raise_all(problems)  # nothing is imported before every name may be
    root = {key: value for key, value in config.items() if key not in layout.nodes}
    targets: dict[str, Target] = {"": layout.root}
    for path, node in nodes.items():
        try:
            targets[path] = _target(path, node, named, layout)
        except ValueError as error:
            problems.append(str(error))
    # Nor is anything built of which a part may not be, or is of the wrong name or type.
    broken = {path.partition(".")[0] for path in nodes.keys() - targets.keys()}
    for path, target in targets.items():
        node = nodes.get(path, root)
        found = [*_name_problems(path, node, target, layout)]
        found += _value_problems(path, node, target)
        problems += found
        broken |= {path.partition(".")[0]} if found else set()
    name = f"{layout.root.__module__}.{layout.root.__name__}"
    maker = Maker({"": {"_target_": name, **root}}, broken)
    maker.make(Root, "")
    raise_all([*problems, *maker.problems, *layout.judge(config, broken)])


def _nodes(tree: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, node) of every mapping with a `_target_`, at any depth, also inside lists."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree
        entries = tree.items()
    else:
        entries = enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in entries:
        yield from _nodes(value, f"{path}.{key}".lstrip("."))


def _structure_problems(
    config: Mapping[str, Any], nodes: Mapping[str, Any], layout: Layout
) -> Iterator[str]:
    roots = inspect.signature(layout.root).parameters
    for key in (*layout.nodes, *layout.optimizers):
        if key not in nodes:
            yield f"{key}._target_: needed, the class to build"
    for key in config:
        if key not in (*layout.nodes, *roots):
            yield f"{key}: no such key{suggest(key, [*layout.nodes, *roots])}"
    for key, parameter in roots.items():
        if key not in config and parameter.default is parameter.empty:
            yield f"{key}: needed"


def _refusal(path: str, target: str) -> str:
    return (
        f"{path}._target_: the stored configuration names {target}, which is not ours; "
        f"if you trust it, name it yourself: {path}._target_={target}"
    )


def _may_import(node: Mapping[str, Any], named: Collection[str] | None) -> bool:
    name = str(node["_target_"])
    return named is None or name in named or name.startswith(TRUSTED)


def _target(
    path: str, node: Mapping[str, Any], named: Collection[str] | None, layout: Layout
) -> Target:
    """The node's class; ValueError in one line if there is none such, or it may not be used."""
    kind = {**layout.nodes, **layout.optimizers}.get(path)
    try:
        target = import_class(kind, node, path) if kind else import_target(node["_target_"])
        inspect.signature(target)  # ValueError for builtins that have none
    except ValueError as error:
        raise ValueError(prefixed(f"{path}._target_", str(error))) from error
    # `mae_nas.x.os.system` begins well and leads elsewhere: what counts is where it was made.
    is_ours = inspect.isclass(target) and f"{target.__module__}.".startswith(TRUSTED)
    if named is not None and node["_target_"] not in named and not is_ours:
        raise ValueError(_refusal(path, node["_target_"]))
    return target


def _name_problems(
    path: str, node: Mapping[str, Any], target: Target, layout: Layout
) -> Iterator[str]:
    name = getattr(target, "__name__", str(target))
    facts = FACTS.get(path, frozenset())
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        usable = [f"{path}.{key}" for key in parameters.keys() - facts]
        for key in sorted(node.keys() & facts):
            yield f"{path}.{key}: is a fact of the data and the other sections; leave it out"
        for key in sorted(node.keys() - parameters.keys() - facts - {"_target_"}):
            near = suggest(f"{path}.{key}", usable)
            yield f"{path}.{key}: {name} takes no such argument{near}"
    if path in layout.nodes:  # what else a node inside a node needs, its receiver adds
        for key in _missing(node, target):
            if key not in facts:
                yield f"{path}.{key}: needed, {name} has no default for it"


def _missing(node: Mapping[str, Any], target: Target) -> list[str]:
    """Arguments that have no default and that the node does not give."""
    return [
        key
        for key, p in inspect.signature(target).parameters.items()
        if p.default is p.empty and p.kind not in VARIADIC and key not in node
    ]


def _value_problems(path: str, node: Mapping[str, Any], target: Target) -> Iterator[str]:
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # annotations that cannot be resolved pass
        return
    for key, parameter in inspect.signature(target).parameters.items():
        hint, default = hints.get(key, Any), parameter.default
        if key in node and not fits(node[key], hint):
            good = default not in (parameter.empty, None) and fits(default, hint)
            listed = list(default) if isinstance(default, tuple) else default
            shown = repr(listed) if good else example(hint)
            would = f" ({shown} would be)" if shown else ""
            name = f"{path}.{key}".lstrip(".")
            yield f"{name}: {node[key]!r} is not {describe(hint)}{would}"
