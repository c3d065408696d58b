"""What measurements say: arrays in, numbers and words out; no files, no torch.

- ``claims``: statements about two methods, as text
- ``intervals``: the interval of an accuracy
- ``significance``: paired comparisons, their p-values, and the correction for several of them
- ``two_way_variance``: the random-effects analysis of seeds and examples behind both
"""
