"""Slices become Parquet shards: every file accounted for, every hand-over a file that a person can open.

In: a folder of DICOM files and a labels CSV. Out: shards, `manifest.json`, `quarantine.csv` and a ledger.
"""
