"""DICOM files become slices: found, read, put in order, in Hounsfield units.

In: paths. Out: headers, int16 HU images with their brain share and crop box, or a reason why not.
"""
