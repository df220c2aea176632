"""Weights fitted to what the original computes on images, site by site, in the order in which the sites run."""
