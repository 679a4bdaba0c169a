"""Certificates in the life of a Trainer: which samples certify, what forbids a certificate, learning, saving."""
