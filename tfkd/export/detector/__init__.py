"""Export of detectors with decoding and non-maximum suppression inside the file."""
