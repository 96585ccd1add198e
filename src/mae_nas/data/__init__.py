"""Images without labels: where they come from, how they are kept, and the batches of search."""

from mae_nas.data.arrays import UnreadableImageError
from mae_nas.data.cifar import Cifar10, Cifar100
from mae_nas.data.digits import Digits
from mae_nas.data.folder import Folder
from mae_nas.data.imagenet import ImageNet
from mae_nas.data.photos import Photos
from mae_nas.data.pipeline import SearchData
from mae_nas.data.source import ImageSource
from mae_nas.data.splits import Split
from mae_nas.data.store import ImageStore
from mae_nas.data.synthetic import Synthetic

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
    "Synthetic",
    "UnreadableImageError",
]
