"""Table 1 of the paper, ImageNet: what found cells are worth once trained with labels."""

from table1 import OURS, PROFILED, UNKNOWN, Half, Row, draw

from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place

AXES = {
    "smoke": (
        *("seed=range(0,1)", "genotype=DARTS_V2,random:0", "network=tiny", "network.stem=imagenet"),
        *("recipe=quick", "trainer.max_steps=20"),
    ),
    "small": (
        *("seed=range(0,1)", "genotype=DARTS_V2,random:0", "network=tiny", "network.stem=imagenet"),
        *("network.width=16", "recipe=quick"),
    ),
    "full": (
        "seed=0,1,2,3,4",
        "genotype=NASNet,DARTS_V2,SNAS_mild,FairDARTS_b,AmoebaNet,PC_DARTS_cifar,"
        "UNNAS_IMAGENET_COL,RLNAS_cifar10,random:0,random:1,random:2,random:3,random:4",
        *("network=imagenet", "recipe=imagenet"),
    ),
}
ROWS = (
    Row("NASNet-A", "5.3", "564", "74.0", "2000", True, "NASNet"),
    Row("DARTS", "4.7", "574", "73.3", "0.4", True, "DARTS_V2"),
    Row("SNAS", "4.3", "522", "72.7", "1.5", True, "SNAS_mild"),
    Row("FairDARTS-B", "4.8", "541", "75.1", "0.4", True, "FairDARTS_b"),
    Row("AmoebaNet-A", "5.1", "555", "74.5", "3150", True, "AmoebaNet"),
    Row("MnasNet", "3.9", "388", "74.79", "3791", True, f"{PROFILED}semnasnet_100"),
    Row("FBNet-C", "5.5", "375", "74.9", "9", True, f"{PROFILED}fbnetc_100"),
    Row("FairNAS-A", "4.6", "388", "75.3", "12", True, "no DARTS cell, and not in timm"),
    Row("PC-DARTS", "5.3", "597", "75.8", "3.8", True, "its ImageNet cell is not in our list"),
    Row("SWAP-NAS", "5.8", "–", "76.0", "0.006", False, UNKNOWN),
    Row("UnNAS", "5.1", "552", "75.8", "4.8", False, "its ImageNet-22k cell is not in our list"),
    Row("RLNAS", "5.2", "561", "75.9", "8.33", False, "its ImageNet cell is not in our list"),
    Row("MAE-NAS", "4.9", "547", "76.5", "2.3", False, OURS),
)
PLACE = Place(NetworkSize(48, 14, "imagenet", True), 3, 224, 1000)
HALF = Half(AXES, "imagenet_unnas", "imagenet", ROWS, PLACE)
sweeps, tables, results = HALF.sweeps, HALF.tables, HALF.results

__all__ = ["AXES", "draw", "results", "sweeps", "tables"]
