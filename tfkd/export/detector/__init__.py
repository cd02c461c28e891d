"""Export of detectors with box decoding and non-maximum suppression inside the file."""
