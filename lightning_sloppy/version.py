"""The version: of the distribution, of the package, and in every certificate."""

__version__ = "0.1.0"
