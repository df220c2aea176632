"""Milliseconds of every conv in every form, measured inside the whole network, here or on a device."""
