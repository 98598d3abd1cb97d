"""A run's files become tables, pictures and statements that say how sure they are.

In: a run folder. Out: `leaderboard.csv`, `ranking.json`, `summary.json`, pictures.
"""
