"""`mae-nas probe`: what frozen features are worth, with labels and without."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mae_nas.cli.arguments import (
    check_folder,
    check_images,
    read_arguments,
    seed_number,
    whole_number,
)
from mae_nas.cli.place import check_choices

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from mae_nas.data import ImageSource, ImageStore
    from mae_nas.network.encoder import Encoder

USAGE = """\
mae-nas probe checkpoint=RUN|FILE [data=NAME data.root=... ...] [KEY=VALUE ...]

What the frozen features of a network are worth, beside those of one with random weights: RankMe
(no labels: the features' effective number; a low one is a sign of collapse, and no ranking), and
where images have labels, kNN (20 neighbours, cosine), a linear probe, and both from 1 % and 10 % of
the labels. Intervals are 95 %, over test images alone.
  checkpoint   of mae-nas pretrain or train: a run folder, or a checkpoint alone
  data=, data.root=, ...   the images; by default the run's
  probes=auto|rank_me|knn,linear,few   auto: all that the images have labels for
  most=        training images to use, drawn by the seed; default: all
  seed=0       of the random weights, of what few labels are, and of held-out images
  beside=random|none   whether a network with random weights is probed as well
  batch=64 threads= device=auto|cpu|cuda|mps   how features are computed
  output=FILE  the answer as JSON as well
  format=text|json
"""

PROBES = ("rank_me", "knn", "linear", "few")
SHARES, NEIGHBOURS = (0.01, 0.1), 20
_CALIBRATION = 50  # batches whose statistics the norms of random weights have
_DEFAULTS = {"checkpoint": "", "probes": "auto", "most": "", "seed": "0", "batch": "64"}
_DEFAULTS |= {"beside": "random", "threads": "", "device": "auto", "output": "", "format": "text"}


class Part(NamedTuple):
    """Images that probes fit or are judged on, in a store that is normalised for the network."""

    store: "ImageStore"
    positions: "NDArray[np.int64]"


def probe(arguments: Sequence[str]) -> str:
    """The table, or JSON."""
    given = read_arguments("probe", arguments, _DEFAULTS, overrides=True)
    options = given.options
    wanted = _wanted(options["probes"])
    check_choices(options, {"beside": ("random", "none")})
    check_images("probe", given.overrides, options)
    size, seed = whole_number("batch", options["batch"]), seed_number(options["seed"])
    most = whole_number("most", options["most"]) if options["most"] else None
    output = Path(options["output"]) if options["output"] else None
    if output is not None and (output.is_dir() or output.suffix != ".json"):
        raise ValueError(f"output={output}: name a .json file")
    if output is not None:
        check_folder("output", output.parent)

    from rich.console import Console  # and torch, seconds

    from mae_nas.cli.encoded import computing_device, load_encoder, read
    from mae_nas.cli.images import named_source
    from mae_nas.data.stream import stream
    from mae_nas.network.stored import untrained
    from mae_nas.runs.checkpoint import read_checkpoint
    from mae_nas.runs.files import write_json

    device = computing_device(options)
    stored, file = load_encoder(options["checkpoint"], device)
    source = named_source(given.overrides, file, stored.preprocessing)
    store = read(source, Console(stderr=True))
    wanted = _possible(wanted, store)
    train, test = _parts(store, source, seed, "rank_me" not in wanted or len(wanted) > 1)
    train = Part(stored.preprocessing.apply(train.store), _drawn(train.positions, most, seed))
    test = test and Part(stored.preprocessing.apply(test.store), test.positions)
    calibration = stream(train.store, train.positions[: _CALIBRATION * size], size, device)
    networks = {"network": stored.network}
    if options["beside"] == "random":
        networks["random"] = untrained(read_checkpoint(file), seed, calibration, device)
    facts: dict[str, Any] = {
        "checkpoint": str(file),
        "step": stored.step,
        "seed": seed,
        "most": options["most"],
        "train_images": len(train.positions),
        "test_images": len(test.positions) if test else 0,
        "unseen_classes": _unseen(train, test),
        "features": stored.network.feature_info[-1].channels,
    }
    for name, network in networks.items():
        facts[name] = worth(network, train, test, wanted, size, device, seed)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, facts)
    return json.dumps(facts, indent=1) if options["format"] == "json" else "\n".join(_page(facts))


def worth(
    network: "Encoder",
    train: Part,
    test: Part | None,
    wanted: Sequence[str],
    batch_size: int,
    device: "torch.device",
    seed: int,
) -> dict[str, Any]:
    """What each probe finds of the network's features, in JSON's types."""
    import torch

    from mae_nas.data.stream import stream
    from mae_nas.network.probing import few_labels, rank_me
    from mae_nas.runs.embedding import features_of

    def seen(part: Part) -> tuple["Tensor", "Tensor"]:
        batches = stream(part.store, part.positions, batch_size, device)
        rows = torch.cat([torch.from_numpy(rows) for rows in features_of(network, batches)])
        labels = part.store.labels
        own = torch.zeros(0) if labels is None else torch.from_numpy(labels[part.positions])
        return rows, own

    known, labels = seen(train)
    found: dict[str, Any] = {"rank_me": rank_me(known)} if "rank_me" in wanted else {}
    if test is None:
        return found
    if len(labels.unique()) < 2:
        raise ValueError(f"most: {len(labels)} training images are of one class; use more")
    others = seen(test)
    found |= _judged(known, labels, *others, wanted, seed)
    if "few" in wanted:
        for share in SHARES:
            few = few_labels(labels, share, seed)
            # As many neighbours as a class has images, or all of them would vote for everything.
            k = max(1, min(NEIGHBOURS, len(few) // len(labels.unique())))
            both = _judged(known[few], labels[few], *others, ("knn", "linear"), seed, k)
            found[_few(share)] = {"images": len(few), **both}
    return found


def _judged(
    known: "Tensor",
    labels: "Tensor",
    test: "Tensor",
    answers: "Tensor",
    wanted: Sequence[str],
    seed: int,
    neighbours: int = NEIGHBOURS,
) -> dict[str, Any]:
    from mae_nas.network.probing import accuracy_interval, knn_accuracy, linear_probe

    found: dict[str, Any] = {}
    if "knn" in wanted:
        top1 = knn_accuracy(known, labels, test, answers, neighbours).accuracy
        found["knn"] = {"top1": top1, "neighbours": neighbours}
    if "linear" in wanted:
        linear = linear_probe(known, labels, test, answers, seed)
        found["linear"] = {"top1": linear.accuracy, "l2": linear.strength}
        found["linear"] |= {"at_grid_end": linear.at_grid_end, "converged": linear.converged}
    for judged in found.values():
        correct = round(judged["top1"] * len(answers))
        judged["interval"] = list(accuracy_interval(correct, len(answers)))
    return found


def _few(share: float) -> str:
    """The key of what a share of the labels gives: few_10 of ten percent."""
    return f"few_{100 * share:g}"


def _wanted(text: str) -> tuple[str, ...]:
    from mae_nas.cli.spelling import suggest

    names = tuple(text.split(","))
    for name in names:
        if name not in PROBES and text != "auto":
            raise ValueError(f"probes={text}: use auto, {', '.join(PROBES)}{suggest(name, PROBES)}")
    return () if text == "auto" else names


def _possible(wanted: tuple[str, ...], store: "ImageStore") -> tuple[str, ...]:
    """The probes wanted, of all that the images have labels for; ValueError for others."""
    if store.labels is not None and len(store.classes) > 1:
        return wanted or PROBES
    if set(wanted) - {"rank_me"}:
        raise ValueError(
            f"probes={','.join(wanted)}: needs labels, which these images do not have; use "
            "probes=rank_me, or data=folder with a folder for each class"
        )
    return ("rank_me",)


def _parts(
    store: "ImageStore",
    source: "ImageSource",
    seed: int,
    is_judged: bool,
) -> tuple[Part, Part | None]:
    """Training and test images; where labels are not asked for, all are training images."""
    import numpy as np

    from mae_nas.data.labelled import LabelledData

    if not is_judged:
        return Part(store, np.arange(len(store))), None
    data = LabelledData(source, seed, 1, validates=False)
    data.load(store=store)
    return Part(data.store, data.split.weights), Part(*data.tested)


def _unseen(train: Part, test: Part | None) -> int:
    """Classes that test images have and training images have not."""
    if test is None or train.store.labels is None or test.store.labels is None:
        return 0
    known = set(train.store.labels[train.positions].tolist())
    return len(set(test.store.labels[test.positions].tolist()) - known)


def _drawn(positions: "NDArray[np.int64]", most: int | None, seed: int) -> "NDArray[np.int64]":
    """So many of them, in their order."""
    import numpy as np

    from mae_nas.randomness import Purpose, derive_key, permutation

    if most is None or most >= len(positions):
        return positions
    order = permutation(len(positions), derive_key(seed, Purpose.LABELLED)).numpy()
    return positions[np.sort(order[:most])]


def _page(facts: Mapping[str, Any]) -> Iterator[str]:
    from mae_nas.runs.listing import columns

    images = f"{facts['train_images']:,} images"
    if facts["test_images"]:
        images = f"{facts['train_images']:,} training images, {facts['test_images']:,} test images"
    yield f"{facts['features']} features of step {facts['step']:,}, {images}"
    if "linear" not in facts["network"] and "knn" not in facts["network"]:
        yield "RankMe alone, which ranks nothing: a low one is a sign of collapse"
    if facts["unseen_classes"]:
        yield f"{facts['unseen_classes']} classes have test images and no training image"
    shown = {"network": "network", "random": "random weights"}
    yield columns(list(_rows({head: facts[key] for key, head in shown.items() if key in facts})))


def _rows(networks: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """A row for each probe, a column for each network."""
    mine = networks["network"]

    def row(name: str, say: Callable[[Mapping[str, Any]], str]) -> dict[str, object]:
        return {"": name, **{head: say(found) for head, found in networks.items()}}

    def share(found: Mapping[str, Any]) -> str:
        low, high = found["interval"]
        notes = [" not converged"] * (not found.get("converged", True))
        return f"{found['top1']:.1%} [{low:.1%}, {high:.1%}]" + "".join(notes)

    if "rank_me" in mine:
        yield row("RankMe", lambda found: f"{found['rank_me']:.1f}")
    for key, name in (("knn", "kNN"), ("linear", "linear probe")):
        if key in mine:
            yield row(name, lambda found, key=key: share(found[key]))
        for few in map(_few, SHARES):
            if few in mine:
                said = f"{name}, {few.removeprefix('few_')} % of labels: {mine[few]['images']:,}"
                yield row(said, lambda found, key=key, few=few: share(found[few][key]))
