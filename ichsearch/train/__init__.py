"""One trial: a configuration becomes a trained model and its scores. It knows no cluster.

In: a configuration, a `SliceSet`, a `Split`, a folder. Out: files in the folder and a `TrialResult`.
"""
