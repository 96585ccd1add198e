"""`mae-nas profile`: what the networks of genotypes cost, and how fast they are here."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from mae_nas.cli.arguments import decimal_number, read_arguments, whole_number
from mae_nas.cli.place import DEVICES, PLACE, check_choices, million, named_device, read_place
from mae_nas.genotype import Genotype, existing_path, read_genotype

if TYPE_CHECKING:
    from torch import nn

    from mae_nas.network.complexity import Complexity, Place

USAGE = """\
mae-nas profile genotype=FILE|RUN|NAME|TEXT|random:SEED [network=cifar] [KEY=VALUE ...]

What a genotype's network costs, and how fast it is on this device beside networks of timm. Several
genotypes (genotype=A,B or one argument each) make a table.
  network=cifar|cifar_small|small|imagenet
                          or network.width=36 network.depth=20 network.stem=cifar
                          network.auxiliary=true
  classes= side= channels=3   of the images; by default those of CIFAR-10 or ImageNet
  max_macs=600            the widest network of at most so many M multiply-adds
  conventions=all         the other ways of counting multiply-adds that papers use
  speed=true|false        latency and throughput, memory of training
  beside=resnet18,mobilenetv3_large_100   models of timm (without speed none, if none is named);
                          beside= is none
  batch=64 threads=1 device=auto|cpu|cuda seconds=1   how it is timed
  format=text|json        one genotype: an object, the models of timm in `beside`; several: a list
Parameters are without the auxiliary head, multiply-adds those of convolutions and linear layers
for one image, memory what training keeps for the gradients.
"""

_DEFAULTS = {**PLACE, "max_macs": "", "conventions": "macs", "speed": "true"}
_DEFAULTS |= {"beside": "resnet18,mobilenetv3_large_100", "batch": "64", "threads": "1"}
_DEFAULTS |= {"device": "auto", "seconds": "1", "format": "text"}
_CHOICES = {"conventions": ("macs", "all"), "speed": ("true", "false"), "device": DEVICES}


def profile(arguments: Sequence[str]) -> str:
    """The table, or JSON: an object with others `beside`, of several genotypes a list of all."""
    named = [word for word in arguments if word.startswith("genotype=")]
    others = [word for word in arguments if not word.startswith("genotype=")]
    options = dict(read_arguments("profile", others, {**_DEFAULTS, "genotype": ""}).options)
    check_choices(options, _CHOICES)
    genotypes = list(genotypes_named([word.partition("=")[2] for word in named]))
    if not genotypes:
        raise ValueError("genotype: needed, e.g. mae-nas profile genotype=DARTS_V2")
    if options["speed"] == "false" and not any(word.startswith("beside=") for word in others):
        options["beside"] = ""
    whole_number("threads", options["threads"])
    whole_number("batch", options["batch"])
    decimal_number("seconds", options["seconds"])
    place = read_place(options)
    rows = _rows(dict(genotypes), place, options)
    if options["format"] == "json":
        found = rows if len(genotypes) > 1 else {**rows[0], "beside": rows[1:]}
        return json.dumps(found, indent=1)
    return "\n".join(_page(rows, options))


def genotypes_named(texts: Sequence[str]) -> Iterator[tuple[str, Genotype]]:
    """Name and genotype of each; names and files may be listed with commas."""
    unquoted = (text[1:-1] if text[:1] == text[-1:] == '"' else text for text in texts)
    for number, text in enumerate(unquoted, 1):
        if "(" in text or "{" in text:
            yield f"text {number}", read_genotype(text)
            continue
        listed = text.removeprefix("[").removesuffix("]").split(",")
        for name in [text] if existing_path(text) else map(str.strip, listed):
            yield name, _named(name)


def _named(name: str) -> Genotype:
    if not name.startswith("random:"):
        return read_genotype(name)
    from mae_nas.spaces import S0  # torch, seconds
    from mae_nas.spaces.derivation import named_genotype

    return named_genotype(name, S0())


def _rows(
    genotypes: Mapping[str, Genotype], place: "Place", options: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One for each genotype, then one for each model of timm."""
    from mae_nas.network.complexity import complexity_of, measure_complexity, widest
    from mae_nas.network.peers import check_known, timm_network

    most = options["max_macs"]
    makers: dict[str, Callable[[], nn.Module]] = {}
    rows: list[dict[str, Any]] = []
    for name, genotype in genotypes.items():
        here = widest(genotype, place, 1e6 * million("max_macs", most)) if most else place
        costs = measure_complexity(genotype, here)
        rows.append({"name": name, "network": asdict(here.size), **_costs(costs, options)})
        makers[name] = partial(here.network, genotype)
    images = {"side": place.side, "channels": place.channels, "classes": place.classes}
    for name in filter(None, options["beside"].split(",")):
        check_known(name, "beside")
        maker = partial(timm_network, name, place.channels, place.classes)
        costs = complexity_of(maker, place.channels, place.side)
        rows.append({"name": name, "network": None, **_costs(costs, options)})
        makers[name] = maker
    if options["speed"] == "true":
        for row, speed in zip(rows, _speeds(makers, place, options), strict=True):
            row |= speed
    return [row | images for row in rows]


def _costs(costs: "Complexity", options: Mapping[str, str]) -> dict[str, Any]:
    found = asdict(costs)
    conventions = found.pop("conventions")
    return found | ({"conventions": conventions} if options["conventions"] == "all" else {})


def _speeds(
    makers: Mapping[str, "Callable[[], nn.Module]"], place: "Place", options: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Latency at one image, throughput at many, and memory of training, in the makers' order."""
    import torch

    from mae_nas.network.complexity import kept_bytes
    from mae_nas.network.latency import describe_device, time_networks

    device = named_device(options["device"])
    torch.set_num_threads(whole_number("threads", options["threads"]))
    seconds, batch = (
        decimal_number("seconds", options["seconds"]),
        whole_number("batch", options["batch"]),
    )
    networks = {name: make().to(device).eval() for name, make in makers.items()}
    timed = []
    for images in (1, batch):
        shape = images, place.channels, place.side, place.side
        timed.append(time_networks(networks, torch.randn(shape, device=device), seconds))
    two = torch.randn(2, place.channels, place.side, place.side, device=device)
    for name, network in networks.items():
        network.train()
        kept = kept_bytes(partial(network, two), network.parameters()) // 2
        one, many = timed[0][name], timed[1][name]
        yield {
            "kept_bytes_per_image": kept,
            "latency_ms": {k: 1e3 * getattr(one, k) for k in ("low", "median", "high")},
            "images_per_second": {
                "low": batch / many.high,
                "median": many.images_per_second,
                "high": batch / many.low,
            },
            "batch": batch,
            "rounds": [one.rounds, many.rounds],
            "device": describe_device(device),
        }


def _page(rows: Sequence[Mapping[str, Any]], options: Mapping[str, str]) -> Iterator[str]:
    from mae_nas.network.complexity import CONVENTIONS
    from mae_nas.runs.listing import columns

    def digits(value: float) -> str:
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"

    def spread(values: Mapping[str, float]) -> str:
        low, median, high = (digits(values[key]) for key in ("low", "median", "high"))
        return f"{median} ({low} to {high})"

    def row(facts: Mapping[str, Any]) -> dict[str, object]:
        size = facts["network"]
        said: dict[str, object] = {
            "name": facts["name"],
            "C, cells": f"{size['width']}, {size['depth']}" if size else "timm",
            "params M": f"{facts['params'] / 1e6:.4f}",
            "with aux": f"{facts['params_with_aux'] / 1e6:.4f}" if size else "",
            "macs M": f"{facts['macs'] / 1e6:.2f}",
        }
        conventions = facts.get("conventions", {})
        said |= {name: f"{value / 1e6:.2f}" for name, value in conventions.items()}
        if "latency_ms" in facts:
            said |= {
                "ms, 1 image": spread(facts["latency_ms"]),
                f"images/s, {facts['batch']}": spread(facts["images_per_second"]),
                "kept MB/image": f"{facts['kept_bytes_per_image'] / 1e6:.1f}",
            }
        return said

    first = rows[0]
    yield columns([row(facts) for facts in rows])
    yield "images of {side} × {side}, channels {channels}, classes {classes}".format(**first)
    if options["conventions"] == "all":
        yield from (f"{name}: {text}" for name, text in CONVENTIONS.items())
    if "device" in first:
        device = first["device"]
        threads = f", threads {device['threads']}" if "threads" in device else ""
        yield f"on {device['name']}{threads}, float32; medians and quartiles"
