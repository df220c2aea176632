"""Weights fitted to what the original computes on images, in the order in which layers run, then together.

`sensitivity` says what an error costs the network, `lockstep` runs original and converted side by side, `in_order` goes
from site to site with `samples`, `site` fits one, `joint` moves all of them by the steps of `soap`, `reconstruct`
judges by the whole network's output. `fidelity` compares two networks, `added` says what one adds to its input.
"""
