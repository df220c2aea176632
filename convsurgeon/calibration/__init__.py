"""The images that a network is calibrated on: read, checked and batched, or synthetic where there are none."""
