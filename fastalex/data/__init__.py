"""Pictures, from a folder of files to batches on a device.

sources            what people have, and the built-in digits
prepare            any source -> a prepared dataset on disk (format: docs/data.md)
shards             the prepared dataset: index, checks, reads
sampler            the order and every random draw, from (seed, epoch, image id)
pipeline           batches, by DALI; the only module that imports it, hence not imported here
"""

from fastalex.data._digits import digits
from fastalex.data.opening import demo_dataset, open_dataset
from fastalex.data.prepare import prepare
from fastalex.data.shards import Dataset, Split
from fastalex.data.sources import Image, Source, image_folder

__all__ = [
    "Dataset",
    "Image",
    "Source",
    "Split",
    "demo_dataset",
    "digits",
    "image_folder",
    "open_dataset",
    "prepare",
]
