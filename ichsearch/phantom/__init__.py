"""Synthetic head-CT cohorts in the form of the RSNA 2019 set, for tests and for trials without data of patients.

In: numbers, a seed and what kind of cohort it shall be. Out: DICOM files and a label table. Rooms in the order of the
data: fields, geometry, design, shapes, cranium, brain, haemorrhage, mix, decoys, scanner, patient, dicom_writer,
cohort.
"""

from ichsearch.phantom.cohort import CohortSummary, write_cohort

__all__ = ["CohortSummary", "write_cohort"]
