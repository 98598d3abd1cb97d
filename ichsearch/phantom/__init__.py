"""Synthetic head-CT cohorts in the form of the RSNA 2019 set, for tests and for trials without data of patients.

In: numbers and a seed. Out: DICOM files and a label table. Rooms in the order of the data: fields, geometry, shapes,
cranium, brain, haemorrhage, scanner, patient, dicom_writer, cohort.
"""

from ichsearch.phantom.cohort import CohortSummary, write_cohort

__all__ = ["CohortSummary", "write_cohort"]
