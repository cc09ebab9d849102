"""Gives every Python process of an environment the emulated device, as a driver would: with this
folder and the repository's root on `PYTHONPATH`."""

from tests.gpu import emulated_card

emulated_card.insert()
