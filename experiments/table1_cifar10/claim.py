"""Table 1 of the paper, CIFAR-10: what found cells are worth once trained with labels."""

from table1 import OURS, UNKNOWN, Half, Row, draw

from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place

AXES = {
    "smoke": (
        *("seed=range(0,1)", "genotype=DARTS_V2,random:0"),
        *("network=tiny", "recipe=quick", "trainer.max_steps=40"),
    ),
    "small": (
        *("seed=range(0,1)", "genotype=DARTS_V2,random:0"),
        *("network=tiny", "network.width=16", "recipe=quick", "trainer.max_epochs=3"),
    ),
    "full": (
        "seed=0,1,2,3,4",
        "genotype=NASNet,ENASNet,DARTS_V1,DARTS_V2,GDAS_V1,PDARTS,PC_DARTS_cifar,"
        "DARTSminus_cifar10_s0_0,random:0,random:1,random:2,random:3,random:4",
        *("network=cifar", "recipe=cifar"),
    ),
}
ROWS = (
    Row("NASNet-A", "3.3", "608", "97.35", "2000", True, "NASNet"),
    Row("ENAS", "4.6", "626", "97.11", "0.5", True, "ENASNet"),
    Row("DARTS", "3.3", "528", "97.0", "0.4", True, "DARTS_V2"),
    Row("GDAS", "3.4", "519", "97.07", "0.2", True, "GDAS_V1"),
    Row("P-DARTS", "3.4", "532", "97.5", "0.3", True, "PDARTS"),
    Row("PC-DARTS", "3.6", "558", "97.43", "0.1", True, "PC_DARTS_cifar"),
    Row("ROME-v1", "4.5", "683", "97.5", "0.3", True, UNKNOWN),
    Row("DARTS-", "3.5", "568", "97.5", "0.4", True, "DARTSminus_cifar10_s0_0"),
    Row("MAE-NAS", "3.6", "561", "97.8", "0.2", False, OURS),
)
HALF = Half(AXES, "cifar10", "cifar10", ROWS, Place(NetworkSize(36, 20, "cifar", True), 3, 32, 10))
sweeps, tables, results = HALF.sweeps, HALF.tables, HALF.results

__all__ = ["AXES", "draw", "results", "sweeps", "tables"]
