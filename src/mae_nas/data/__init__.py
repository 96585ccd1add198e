"""Images without labels: where they come from, how they are kept, and the batches of search."""

from mae_nas.data.arrays import UnreadableImageError
from mae_nas.data.embedded import Digits, Photos, Synthetic
from mae_nas.data.folders import Cifar10, Cifar100, Folder, ImageNet
from mae_nas.data.loading import store_of_arrays
from mae_nas.data.pipeline import SearchData, StepData, UnlabelledData
from mae_nas.data.source import ImageSource
from mae_nas.data.splits import Split
from mae_nas.data.store import ImageStore

__all__ = [
    "Cifar10",
    "Cifar100",
    "Digits",
    "Folder",
    "ImageNet",
    "ImageSource",
    "ImageStore",
    "Photos",
    "SearchData",
    "Split",
    "StepData",
    "Synthetic",
    "UnlabelledData",
    "UnreadableImageError",
    "store_of_arrays",
]
