"""Weights fitted to what the original computes on images, in the order in which layers run.

`calibration` and `images` read the data, `sensitivity` says what an error costs the network, `lockstep` runs original
and converted side by side, `in_order` goes from site to site with `samples`, `site` fits one, `reconstruct` judges by
the whole network's output. Where no images are given `synthetic` makes them up: `drawing`, `scale`, `restoring`,
`norms`, `inversion`; `suspicion` says what looks wrong with those that are, `depth` reads their bits, and `gather`
takes whichever it is. `fidelity` compares two networks and is used by every room below.
"""
