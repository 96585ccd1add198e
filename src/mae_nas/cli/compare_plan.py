"""How networks are compared: widths that make them equally fast, steps that take equal minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from mae_nas.cli.assemble import settle_precision
from mae_nas.cli.check import check
from mae_nas.cli.compose import compose
from mae_nas.cli.logs import say
from mae_nas.cli.pretrain import LAYOUT, PretrainRun, make_network, prepare
from mae_nas.cli.spelling import quoted
from mae_nas.network import DerivedNetwork
from mae_nas.network.complexity import Place, complexity_of
from mae_nas.network.latency import describe_device, device_type, time_networks
from mae_nas.network.scaling import width_as_fast
from mae_nas.runs.files import read_json, write_json
from mae_nas.runs.folder import RunFolder
from mae_nas.runs.measure import measure_step

_SECONDS, _TURNS = 1.0, 3  # of each measurement of a latency; of a step


def planned(
    names: Mapping[str, str], options: Mapping[str, str], overrides: Sequence[str], output: Path
) -> dict[str, Any]:
    """Widths, latencies and steps of all networks: measured, or read back from `output`.

    Args:
        names: of the networks, with the override that names each to `mae-nas pretrain`.
        options: of `mae-nas compare`.
        overrides: of every pretraining.
        output: folder of the comparison.
    """
    file = output / "plan.json"
    asked = {key: options[key] for key in ("budget_minutes", "latency_ms", "batch", "threads")}
    asked |= {"networks": dict(names), "overrides": list(overrides)}
    if file.exists():
        plan = read_json(file)
        if not isinstance(plan, dict) or plan.get("asked") != asked:
            raise ValueError(f"output: {output} holds another comparison; choose another folder")
        return plan
    torch.set_num_threads(int(options["threads"]))
    common = [*overrides, f"efficiency.threads={options['threads']}"]
    plan = {"asked": asked, **_measured({n: [*common, w] for n, w in names.items()}, options)}
    output.mkdir(parents=True, exist_ok=True)
    write_json(file, plan)
    return plan


def composed(words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a pretraining, as it will be stored."""
    config = compose(list(words), None, "pretrain").config
    settle_precision(config)
    return config


def _measured(words: Mapping[str, list[str]], options: Mapping[str, str]) -> dict[str, Any]:
    networks: dict[str, nn.Module] = {}
    runs: dict[str, PretrainRun] = {}
    given_to: dict[str, list[str]] = {}
    facts: dict[str, dict[str, Any]] = {}
    given = float(options["latency_ms"]) / 1e3 if options["latency_ms"] else None
    image = torch.empty(0)
    for name in sorted(
        words, key=lambda name: words[name][-1].startswith("genotype=")
    ):  # models first
        run, mine = _prepared(words[name]), words[name]
        if not networks:
            device = torch.device(device_type(run.settings.accelerator))
            shape = int(options["batch"]), run.data.channels, run.data.side, run.data.side
            image = torch.randn(shape, device=device)
        network = run.module.network
        if isinstance(network, DerivedNetwork):
            place = Place(network.size, run.data.channels, run.data.side, 0)
            reference = given or next(iter(networks.values()))
            try:
                width = width_as_fast(network.genotype, place, image, reference, _SECONDS)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            mine = [*mine, f"network.width={width}"]
            run = _prepared(mine)
        if runs:  # the same images: one copy of them will do
            run = replace(run, data=next(iter(runs.values())).data)
        networks[name] = _made(run).to(image.device).eval()
        runs[name], given_to[name] = run, mine
    seconds = _step_seconds(runs)
    for name, run in runs.items():
        facts[name] = _facts(run, given_to[name], seconds[name], float(options["budget_minutes"]))
        said = "{0}: {params:,} parameters, {steps} steps of {step_seconds:.3g} s"
        say(said.format(name, **facts[name]))
    for name, timing in time_networks(networks, image, 3 * _SECONDS).items():
        spread = {key: 1e3 * getattr(timing, key) for key in ("low", "median", "high")}
        facts[name]["latency_ms"] = spread
    ordered = {name: facts[name] for name in words}
    return {"networks": ordered, "device": describe_device(image.device)}


def _step_seconds(runs: Mapping[str, PretrainRun]) -> dict[str, float]:
    """Of a step, the least of some, in turns, so that what else goes on meets all."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(_TURNS):
        for name, run in runs.items():
            cost = measure_step(run.module, run.data, run.settings)
            seconds[name] = min(seconds[name], cost.seconds)
    return seconds


def _prepared(words: Sequence[str]) -> PretrainRun:
    config = composed(words)
    check(config, None, LAYOUT)
    return prepare(config, RunFolder(Path("none")), Console(stderr=True))


def _made(run: PretrainRun) -> nn.Module:
    return make_network(run.config, run.data.channels, run.data.side)


def _facts(
    run: PretrainRun, words: Sequence[str], seconds: float, minutes: float
) -> dict[str, Any]:
    """What a network costs, and in how many steps of so many seconds it spends its minutes.

    Genotypes stand in the words themselves: their files may say something else later.
    """
    if genotype := run.config["genotype"]:
        named = f"genotype={quoted(genotype)}"
        words = [named if word.startswith("genotype=") else word for word in words]
    costs = complexity_of(partial(_made, run), run.data.channels, run.data.side)
    steps = max(1, round(60 * minutes / seconds))
    return {
        "words": [*words, f"pretraining.steps={steps}"],
        "width": None if run.config["model"] else run.config["network"]["width"],
        "params": costs.params,
        "macs": costs.macs,
        "step_seconds": seconds,
        "steps": steps,
    }
