"""The public names. Type checkers read them here, and so does `__init__.py`."""

from . import architectures as architectures
from . import bijections as bijections
from . import data as data
from . import diagnostics as diagnostics
from . import errors as errors
from . import laws as laws
from . import nets as nets
from . import plots as plots
from . import priors as priors
from . import problems as problems
from . import report as report
from .apps import classify as classify
from .apps import density as density
from .apps import images as images
from .apps import invert as invert
from .apps import load as load
from .inn import INN as INN
from .inn import Block as Block
from .inn import Partition as Partition
from .priors import LogNormal as LogNormal
from .priors import Normal as Normal
from .priors import Uniform as Uniform
from .train import FitResult as FitResult
from .train import Training as Training
from .train import fit as fit
