"""Spectra, effective dimensions and PAC-Bayes bounds of a network while Lightning trains it.

The public names are listed in ``__init__.pyi``. They are loaded when first used, so that the functions and records
work without importing Lightning.
"""

import lazy_loader

from lightning_sloppy.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
