"""Twenty published genotypes: a name, then its normal and its reduction cell, a line each.

`3=sep3(0)+dil5(2)` reads: node 3 is the sum of a separable 3×3 convolution of node 0 and a dilated
5×5 convolution of node 2. Nodes 0 and 1 are the outputs of the two cells before; behind the arrow
stand the nodes that are concatenated. FairDARTS_a leaves node 3 without an edge; its authors'
network concatenates only nodes that have one, so 3 is not listed. GDAS_V1 follows the authors' own
list; copies of it elsewhere end in `sep5(2)`.
"""

TABLE = """\
NASNet
2=sep5(1)+sep3(0) 3=sep5(0)+sep3(0) 4=avg(1)+skip(0) 5=avg(0)+avg(0) 6=sep3(1)+skip(1) -> 23456
2=sep5(1)+sep7(0) 3=max(1)+sep7(0) 4=avg(1)+sep5(0) 5=skip(3)+avg(2) 6=sep3(2)+max(1) -> 456
AmoebaNet
2=avg(0)+max(1) 3=sep3(0)+sep5(2) 4=sep3(0)+avg(3) 5=sep3(1)+skip(1) 6=skip(0)+avg(1) -> 456
2=avg(0)+sep3(1) 3=max(0)+sep7(2) 4=sep7(0)+avg(1) 5=max(0)+max(1) 6=7x1(0)+sep3(5) -> 346
DARTS_V1
2=sep3(1)+sep3(0) 3=skip(0)+sep3(1) 4=skip(0)+sep3(1) 5=sep3(0)+skip(2) -> 2345
2=max(0)+max(1) 3=skip(2)+max(0) 4=max(0)+skip(2) 5=skip(2)+avg(0) -> 2345
DARTS_V2
2=sep3(0)+sep3(1) 3=sep3(0)+sep3(1) 4=sep3(1)+skip(0) 5=skip(0)+dil3(2) -> 2345
2=max(0)+max(1) 3=skip(2)+max(1) 4=max(0)+skip(2) 5=skip(2)+max(1) -> 2345
PC_DARTS_cifar
2=sep3(1)+skip(0) 3=sep3(0)+dil3(1) 4=sep5(0)+sep3(1) 5=avg(0)+dil3(1) -> 2345
2=sep5(1)+max(0) 3=sep5(1)+sep5(2) 4=sep3(0)+sep3(3) 5=sep3(1)+sep3(2) -> 2345
PDARTS
2=skip(0)+dil3(1) 3=skip(0)+sep3(1) 4=sep3(1)+sep3(3) 5=sep3(0)+dil5(4) -> 2345
2=avg(0)+sep5(1) 3=sep3(0)+dil5(2) 4=max(0)+dil3(1) 5=dil3(1)+dil5(3) -> 2345
ENASNet
2=sep3(1)+skip(1) 3=sep5(1)+skip(0) 4=avg(0)+sep3(1) 5=sep3(0)+avg(1) 6=sep5(1)+avg(0) -> 23456
2=sep5(0)+sep3(1) 3=sep3(1)+avg(1) 4=sep3(1)+avg(1) 5=avg(1)+sep5(4) 6=sep3(5)+sep5(0) -> 23456
FairDARTS_a
2=sep3(0)+sep5(1) 4=max(0) 5=sep3(0) -> 245
2=max(0)+avg(1) 3=avg(0)+dil5(1) 4=avg(0)+sep5(1) 5=skip(0)+skip(1) -> 2345
FairDARTS_b
2=sep3(0)+sep3(1) 3=sep3(1) 4=dil3(0)+sep5(1) 5=dil5(1) -> 2345
2=skip(0)+dil3(1) 3=skip(0)+dil3(1) 4=max(0)+sep3(1) 5=skip(2)+max(0) -> 2345
GDAS_V1
2=skip(0)+skip(1) 3=skip(0)+sep5(2) 4=sep3(3)+skip(0) 5=sep5(4)+sep3(3) -> 2345
2=sep5(0)+sep3(1) 3=sep5(2)+sep5(1) 4=dil5(2)+sep3(1) 5=sep5(0)+sep5(1) -> 2345
SNAS_mild
2=sep3(0)+sep3(1) 3=skip(0)+dil3(1) 4=skip(0)+skip(1) 5=skip(0)+sep3(1) -> 2345
2=max(0)+max(1) 3=max(1)+skip(2) 4=max(1)+skip(2) 5=max(0)+dil5(2) -> 2345
DARTSminus_cifar10_s0_0
2=sep3(0)+sep5(1) 3=sep3(1)+dil3(2) 4=skip(1)+sep3(0) 5=skip(1)+sep3(0) -> 2345
2=sep3(0)+max(1) 3=skip(2)+max(0) 4=skip(2)+skip(3) 5=skip(2)+skip(3) -> 2345
DARTSminus_cifar10_s0_1
2=sep3(0)+dil5(1) 3=sep3(0)+sep3(1) 4=dil5(1)+sep3(0) 5=skip(1)+sep3(0) -> 2345
2=sep3(1)+max(0) 3=skip(2)+max(1) 4=skip(2)+skip(3) 5=skip(2)+skip(3) -> 2345
DARTSminus_cifar10_s1_0
2=skip(1)+dil3(0) 3=sep3(1)+dil3(2) 4=skip(0)+sep3(1) 5=skip(1)+dil3(3) -> 2345
2=max(0)+max(1) 3=max(1)+max(0) 4=skip(2)+max(0) 5=max(1)+skip(3) -> 2345
DARTSminus_cifar10_s2_0
2=sep3(1)+sep3(0) 3=sep3(1)+sep3(0) 4=sep3(1)+sep3(0) 5=skip(1)+sep3(0) -> 2345
2=sep3(1)+sep3(0) 3=sep3(1)+skip(2) 4=skip(2)+skip(3) 5=skip(2)+skip(3) -> 2345
DARTSminus_cifar10_s4_0
2=sep3(0)+sep3(1) 3=sep3(0)+sep3(1) 4=sep3(0)+sep3(1) 5=sep3(0)+noise(3) -> 2345
2=sep3(0)+sep3(1) 3=sep3(0)+sep3(1) 4=sep3(1)+sep3(0) 5=sep3(1)+sep3(0) -> 2345
RLNAS_cifar10
2=sep5(0)+sep3(1) 3=dil3(0)+sep5(2) 4=sep3(0)+dil5(3) 5=dil5(1)+dil3(2) -> 2345
2=sep5(0)+dil3(1) 3=sep3(0)+sep5(2) 4=dil3(1)+sep3(3) 5=max(1)+sep5(2) -> 2345
UNNAS_IMAGENET_CLS
2=sep3(1)+sep3(0) 3=sep3(1)+sep3(0) 4=sep3(0)+sep3(2) 5=sep5(1)+sep3(0) -> 2345
2=max(0)+skip(1) 3=max(0)+dil5(2) 4=max(0)+sep3(2) 5=sep3(4)+dil5(3) -> 2345
UNNAS_IMAGENET_COL
2=skip(0)+sep3(1) 3=sep3(1)+skip(0) 4=sep3(0)+sep3(3) 5=sep3(0)+sep3(2) -> 2345
2=max(0)+sep3(1) 3=max(0)+sep3(1) 4=max(0)+sep5(3) 5=max(0)+sep3(4) -> 2345
RobustDARTS_S1_cifar10_dp0.0_wd0.0003_t1
2=skip(1)+dil3(0) 3=skip(2)+skip(0) 4=skip(0)+skip(2) 5=skip(2)+skip(1) -> 2345
2=max(1)+max(0) 3=skip(2)+max(1) 4=skip(2)+max(0) 5=max(0)+max(1) -> 2345
"""
