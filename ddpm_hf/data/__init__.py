"""Any data set -> images as x_0 and what a model is conditioned on."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .images import ImageDataset, collate_batch, decode
    from .order import SampleOrder
    from .sources import load_image_dataset
    from .streaming import StreamedImages

FASHION_MNIST = "zalando-datasets/fashion_mnist"

__all__ = [
    "FASHION_MNIST",
    "ImageDataset",
    "SampleOrder",
    "StreamedImages",
    "collate_batch",
    "decode",
    "load_image_dataset",
]
__getattr__ = lazy_names(
    __name__,
    {
        "ImageDataset": "images",
        "SampleOrder": "order",
        "StreamedImages": "streaming",
        "collate_batch": "images",
        "decode": "images",
        "load_image_dataset": "sources",
    },
    extra="train",
)
