"""The converted network learns from the original, without labels.

`refit` stands here as well: optimisers and averages of the original go on with the converted model.
"""
