"""Any data set -> images as x_0 and what a model is conditioned on."""

try:
    from .images import ImageDataset, collate_batch
    from .order import SampleOrder
    from .sources import FASHION_MNIST, load_image_dataset
    from .streaming import StreamedImages
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'No module {error.name!r}: pip install -e ".[train]"', name=error.name) from error

__all__ = ["FASHION_MNIST", "ImageDataset", "SampleOrder", "StreamedImages", "collate_batch", "load_image_dataset"]
