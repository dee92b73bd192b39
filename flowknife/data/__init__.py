"""Reading and writing data: tables, folders of images, simulated pairs, toys, data sets of installed packages."""

from flowknife.data._decode import White
from flowknife.data._find import Skipped, find_images
from flowknife.data._simulators import takes_key
from flowknife.data.augmentation import Augmentation, augment
from flowknife.data.images import ImageSet, fingerprint, load_images, usual_side, write_skipped
from flowknife.data.samples import digits, mnist_5k, write_folder
from flowknife.data.sets import SimulationSet, read_set
from flowknife.data.simulations import Simulations, given_pairs, predicted, simulate
from flowknife.data.tables import Table, load_table, save_table
from flowknife.data.toys import TOYS, Toy, ring_labels

__all__ = [
    "TOYS",
    "Augmentation",
    "ImageSet",
    "SimulationSet",
    "Simulations",
    "Skipped",
    "Table",
    "Toy",
    "White",
    "augment",
    "digits",
    "find_images",
    "fingerprint",
    "given_pairs",
    "load_images",
    "load_table",
    "mnist_5k",
    "predicted",
    "read_set",
    "ring_labels",
    "save_table",
    "simulate",
    "takes_key",
    "usual_side",
    "write_folder",
    "write_skipped",
]
