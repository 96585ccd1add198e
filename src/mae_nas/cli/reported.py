"""What a page says of runs: headings, the keys that stand below them, pictures with captions."""

PICTURES = {
    "cells": "The cells found",
    "alpha": "α: the mixing weights of every edge, kept ones framed",
    "alpha_history": "α over the search",
    "losses": "Losses, beside predictors that learn nothing",
    "reconstructions": "Held-out images: whole, masked, predicted, and put together",
}
SEARCHED = {
    "space": "space._target_",
    "relaxation": "relaxation._target_",
    "decoder": "decoder._target_",
    "taps": "decoder.taps",
    "upsampling": "decoder.upsample",
    "mask ratio": "mask.ratio",
    "patch size, pixels": "mask.patch_size",
    "masking": "mask.mode",
    "target": "objective.target",
    "images from": "data._target_",
    "batch": "data.batch_size",
    "supernet's width": "supernet.width",
    "supernet's depth": "supernet.depth",
    "seed": "seed",
}
COSTS = {
    "steps": "final.step",
    "wall time": "wall_seconds",
    "images per second": "images_per_second",
    "share of time waiting for data": "waiting_share",
    "peak memory, bytes": "peak_memory_bytes",
    "supernet, parameters": "costs.supernet.parameters",
    "supernet, multiply-adds an image": "costs.supernet.multiply_adds",
    "decoder, parameters": "costs.decoder.parameters",
    "decoder, multiply-adds an image": "costs.decoder.multiply_adds",
}
TRAINED = {
    "genotype": "genotype",
    "width": "network.width",
    "cells": "network.depth",
    "stem": "network.stem",
    "images from": "data._target_",
    "batch": "data.batch_size",
    "learning rate": "recipe.optimizer.lr",
    "drop path": "recipe.drop_path",
    "cutout, pixels": "recipe.cutout",
    "seed": "seed",
}
PRETRAINED = {
    "genotype": "genotype",
    "model of timm": "model",
    "width": "network.width",
    "cells": "network.depth",
    "mask ratio": "mask.ratio",
    "patch size, pixels": "mask.patch_size",
    "taps": "decoder.taps",
    "images from": "data._target_",
    "batch": "data.batch_size",
    "learning rate, for 256 images": "pretraining.optimizer.lr",
    "seed": "seed",
}
TESTED = {
    "accuracy after the last epoch": "test_top1",
    "among the first five": "test_top5",
    "loss": "test_loss",
    "images": "test_images",
}
TRAIN_COSTS = {
    "epochs": "epochs",
    "wall time": "wall_seconds",
    "images per second": "images_per_second",
    "peak memory, bytes": "peak_memory_bytes",
    "parameters": "costs.params",
    "multiply-adds an image": "costs.macs",
}
PRETRAIN_PICTURES = {name: PICTURES[name] for name in ("losses", "reconstructions")}
TRAIN_PICTURES = {
    "curves": "Loss and accuracy over the epochs",
    "classes": "Accuracy by class, worst first, and what each class is taken for",
}
PAPER = {
    "decoder": "The paper, Table 3 (CIFAR-10, whole searches): with the hierarchical decoder 1 "
    "skip at mask ratios .2, .4, .6 and .8; without it 8, 6, 2 and 1. These are the paper's "
    "numbers.",
    "mask.patch_size": "The paper, Table 2 (CIFAR-10, networks trained with labels): errors of "
    "2.71 to 2.75 % over patches of 2 to 16 pixels. These are the paper's numbers.",
    "mask.ratio": "The paper, Table 2 (CIFAR-10, networks trained with labels): errors of 2.75 to "
    "2.79 % over mask ratios of .1 to .7. These are the paper's numbers.",
}
"""What stands beside a sweep over a key."""
