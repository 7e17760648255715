"""A learner and a clusterer for exmap, as an example of a plug-in."""
