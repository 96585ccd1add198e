"""Help, rendered from the YAML that it describes."""

from mae_nas.cli.compose import RUN_DIR
from mae_nas.cli.library import open_library, unresolved
from mae_nas.keys import ABSENT, find

OVERVIEW = """\
mae-nas: label-free architecture search by masked image reconstruction

  mae-nas search [KEY=VALUE ...]     from images without labels to a genotype
  mae-nas search -m KEY=A,B ...      a sweep: a search for each value (train -m: a training)
  mae-nas train genotype=...         a network of its cells, trained on images with labels
  mae-nas pretrain genotype=...      the same on images without labels, or a network of timm
  mae-nas test checkpoint=RUN        how accurate it is on test images
  mae-nas embed checkpoint=RUN       features of images, as a file
  mae-nas probe checkpoint=RUN       what those features are worth: kNN, linear probe, RankMe
  mae-nas compare genotypes=... models=...   networks pretrained alike, equally fast
  mae-nas export checkpoint=RUN      the trained network as a file: safetensors, timm, ONNX, torch
  mae-nas runs [FOLDER]              what became of the searches in a folder
  mae-nas report FOLDER...           runs or sweeps as one page
  mae-nas draw genotype=...          a picture of a genotype
  mae-nas profile genotype=...       what its network costs, and how fast it is here
  mae-nas derive run=RUN max_macs=M  the best cells of a search under limits, and the trade-off
  mae-nas sample                     random cells of a space
  mae-nas inspect FOLDER             what a folder of images holds, and how to search on it
  mae-nas bench search               how fast a step is, in several ways side by side
  mae-nas COMMAND --help             more about a command
  mae-nas --version

Tab completion: eval "$(mae-nas -sc install=bash)"
"""

_KEYS = {
    "mask.ratio": "fraction of the patches that is hidden",
    "mask.patch_size": "pixels",
    "mask.mode": "dense | sparse",
    "decoder.taps": "which of F1, F2, F3",
    "decoder.kernel": "auto | odd integer",
    "decoder.upsample": "nearest | shuffle",
    "objective.target": "image | permuted (the null arm)",
    "supernet.width": "channels of the first cells",
    "supernet.depth": "cells, at least 3",
    "genotype": "of relaxation=fixed: file, run folder, name, text or random:SEED",
    "data.root": "folder of images (data=folder, cifar10, cifar100, imagenet)",
    "seed": "",
    "resume": "null: new run | auto: newest unfinished | PATH of a run",
    "on_collapse": "warn | stop",
    "trainer.max_epochs": "auto: 50, or as many more as 6,000 steps take",
    "trainer.max_steps": "stop early; schedules stay",
    "trainer.precision": "auto (half on CUDA) | 32-true | 64-true | bf16-mixed | 16-mixed",
    RUN_DIR: "the run folder",
    "hydra.sweep.dir": "the folder of a sweep (-m)",
    "hydra.launcher.parallel": "jobs of a sweep at once",
    "hydra.launcher.executor": "process (here) | slurm | local (submitit, here)",
}

_USAGE = """\
mae-nas search [-m] [KEY=VALUE ...] [--config-dir DIR] [--cfg job]

Search an architecture on images without labels. Every key has a default.

Groups (GROUP=OPTION; the default is marked *):
{groups}

Common keys (KEY=VALUE):
{keys}
  All keys: mae-nas search --cfg job

Examples:
  mae-nas search experiment=demo
  mae-nas search data=folder data.root=/my/images mask.ratio=0.6 mask.patch_size=4
  mae-nas search decoder=unet mask.mode=sparse hydra.run.dir=runs/mine resume=auto
  mae-nas search -m mask.ratio=0.2,0.6 'seed=range(0,3)' hydra.launcher.parallel=2
  mae-nas search decoder=custom decoder._target_=my_module.MyDecoder decoder.argument=1

Exit codes: 0 done, 1 failed, 2 configuration, 3 stopped by the collapse verdict, 75 run it again,
130 Ctrl-C.
"""


_RUN_KEYS = {
    "data.root": "folder of images (data=folder, cifar10, cifar100, imagenet)",
    "data.batch_size": "images of a step, on all devices together",
    "seed": "",
    "resume": "null: new run | auto: newest unfinished | PATH of a run",
    "trainer.max_epochs": "length of the schedule",
    "trainer.max_steps": "stop early; schedules stay",
    "trainer.precision": "auto (half on CUDA) | 32-true | 64-true | bf16-mixed | 16-mixed",
    RUN_DIR: "the run folder",
    "hydra.sweep.dir": "the folder of a sweep (-m)",
    "hydra.launcher.parallel": "jobs of a sweep at once",
}

_NETWORK_KEYS = {
    "genotype": "of the network: file, run folder, name (DARTS_V2), DARTS's text or random:SEED",
    "network.width": "channels of the first cells",
    "network.depth": "cells, at least 3",
}

_TRAIN_KEYS = {
    **_NETWORK_KEYS,
    "init_from": "run folder of mae-nas pretrain: begin with its weights",
    "recipe.optimizer.lr": "learning rate at the start",
    "recipe.validates": "true: judge by held-out training images until the end",
    **_RUN_KEYS,
}

_TRAIN_USAGE = """\
mae-nas train [-m] genotype=... [KEY=VALUE ...] [--config-dir DIR] [--cfg job]

Train the network of a genotype on images with labels. Every other key has a default.

Groups (GROUP=OPTION; the default is marked *):
{groups}

Common keys (KEY=VALUE):
{keys}
  All keys: mae-nas train genotype=DARTS_V2 --cfg job

Examples:
  mae-nas train genotype=DARTS_V2
  mae-nas train genotype=runs/search/... network=cifar recipe=cifar data=cifar10 data.root=/data
  mae-nas train genotype=PDARTS network=small data=folder data.root=/images/train data.side=96
  mae-nas train -m genotype=DARTS_V2,random:0,random:1 seed=0,1

Exit codes: 0 done, 1 failed, 2 configuration, 75 run it again, 130 Ctrl-C.
"""

_PRETRAIN_KEYS = {
    **_NETWORK_KEYS,
    "model": "instead of genotype: a convolutional network of timm, e.g. resnet18",
    "mask.ratio": "fraction of the patches that is hidden",
    "mask.patch_size": "pixels",
    "pretraining.steps": "length of the schedule in steps, instead of trainer.max_epochs",
    "pretraining.optimizer.lr": "for 256 images a step",
    **_RUN_KEYS,
}

_PRETRAIN_USAGE = """\
mae-nas pretrain [-m] genotype=...|model=... [KEY=VALUE ...] [--config-dir DIR] [--cfg job]

Train a network on images without labels, by the masked loss of the search. Every other key has a
default.

Groups (GROUP=OPTION; the default is marked *):
{groups}

Common keys (KEY=VALUE):
{keys}
  All keys: mae-nas pretrain --cfg job

Examples:
  mae-nas pretrain genotype=DARTS_V2
  mae-nas pretrain genotype=runs/search/... network=small data=folder data.root=/images
  mae-nas pretrain model=resnet18 data=cifar10 data.root=/data pretraining.steps=2000
  mae-nas pretrain -m genotype=DARTS_V2,random:0 seed=0,1

Then mae-nas embed, mae-nas probe, or mae-nas train init_from=RUN.

Exit codes: 0 done, 1 failed, 2 configuration, 75 run it again, 130 Ctrl-C.
"""

_HELP = {
    "search": (_USAGE, _KEYS),
    "train": (_TRAIN_USAGE, _TRAIN_KEYS),
    "pretrain": (_PRETRAIN_USAGE, _PRETRAIN_KEYS),
}


def command_help(command: str) -> str:
    """Groups with their options, common keys with their defaults, examples."""
    usage, meanings = _HELP[command]
    with open_library(command) as library:
        groups = library.groups()
        tree = library.compose([])
        plain, chosen = unresolved(tree), tree.hydra.runtime.choices
    lines, keys = [], []
    for group, options in groups.items():
        marked = [f"{o}*" if o == chosen.get(group) else o for o in options]
        lines.append(f"  {group:<11} {', '.join(marked)}")
    for key, meaning in meanings.items():
        value = find(plain, key)
        shown = "null" if value is None else value
        pair = f"{key}=" if value is ABSENT else f"{key}={shown}"
        keys.append(f"  {pair:<32} {meaning}".rstrip())
    return usage.format(groups="\n".join(lines), keys="\n".join(keys))
