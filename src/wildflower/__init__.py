"""Federated learning on Flower with an over-the-air backbone for fleets of edge devices."""

__version__ = "0.1.0"
