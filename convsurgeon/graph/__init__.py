"""What a network is: traced, every conv found as a site with its shapes, calls, neighbours and cost.

`load` stands here too: a name or a file becomes a model.
"""
