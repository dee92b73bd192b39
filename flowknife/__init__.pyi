"""The public names. Type checkers read them here, and so does `__init__.py`."""

__version__: str

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
from . import recipes as recipes
from . import report as report
from . import train as train
from .apps import Classifier as Classifier
from .apps import ClassifyConfig as ClassifyConfig
from .apps import Density as Density
from .apps import DensityConfig as DensityConfig
from .apps import Images as Images
from .apps import ImagesConfig as ImagesConfig
from .apps import InvertConfig as InvertConfig
from .apps import Posterior as Posterior
from .apps import classify as classify
from .apps import density as density
from .apps import images as images
from .apps import invert as invert
from .apps import load as load
from .apps import simulate as simulate
from .estimators import AnomalyDetector as AnomalyDetector
from .estimators import FlowClassifier as FlowClassifier
from .estimators import FlowDensity as FlowDensity
from .estimators import FlowRegressor as FlowRegressor
from .estimators import FlowTransformer as FlowTransformer
from .inn import INN as INN
from .inn import Block as Block
from .inn import Partition as Partition
from .priors import LogNormal as LogNormal
from .priors import LogUniform as LogUniform
from .priors import Normal as Normal
from .priors import Uniform as Uniform
from .train import FitResult as FitResult
from .train import Training as Training
from .train import fit as fit
