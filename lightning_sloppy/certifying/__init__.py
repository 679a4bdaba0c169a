"""Certificates in the life of a Trainer: which samples certify, what forbids a certificate, learning, saving."""

from lightning_sloppy.certifying.certificate_task import RunState
from lightning_sloppy.certifying.certified_networks import learn_and_certify
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.certifying.hold_out_set import HoldOut
from lightning_sloppy.certifying.prior_split import PriorSplit
from lightning_sloppy.certifying.start_check import StartCheck, checked_start

__all__ = [
    "ErrorCounter",
    "HoldOut",
    "PriorSplit",
    "RunState",
    "StartCheck",
    "checked_start",
    "learn_and_certify",
]
