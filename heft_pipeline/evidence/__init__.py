"""What measurements say: arrays in, numbers and words out; no files, no torch.

- ``claims``: statements about two methods, as text, and what an interval says of them
- ``clusters``: examples that share something, and so are not independent
- ``strata``: means over several tasks, whose examples are each sampled by themselves
- ``two_way_variance``: the random-effects analysis of seeds and examples, and its quantiles
- ``intervals``: the interval of an accuracy
- ``estimates``: an interval and a p-value that cannot disagree
- ``comparison``: the paired difference of two methods, and what would decide it
- ``simultaneous``: intervals that hold for several comparisons at once
- ``resampling``: the bootstrap over seeds and examples
- ``calibration``, ``agreement``, ``rise``: what is measured beside accuracy
"""
