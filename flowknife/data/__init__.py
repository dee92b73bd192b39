"""Data in and out: tables, folders of pictures, toy distributions, and data sets of installed packages."""

from flowknife.data.images import ImageSet, Skipped, fingerprint, load_images, write_skipped
from flowknife.data.samples import digits, mnist_5k, write_folder
from flowknife.data.tables import Table, load_table, save_table
from flowknife.data.toys import TOYS, Toy, ring_labels

__all__ = [
    "TOYS",
    "ImageSet",
    "Skipped",
    "Table",
    "Toy",
    "digits",
    "fingerprint",
    "load_images",
    "load_table",
    "mnist_5k",
    "ring_labels",
    "save_table",
    "write_folder",
    "write_skipped",
]
