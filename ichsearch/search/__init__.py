"""A space of configurations becomes finished trials: Ray Tune runs them, an Optuna journal remembers them.

In: a space, a folder of shards, a run folder. Out: the run folder, filled.
"""
