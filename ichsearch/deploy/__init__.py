"""A run's winner put to use: loaded, joined with others, exported.

In: a run folder. Out: predictors, `ensemble.json`, folders that predict without the run.
"""
