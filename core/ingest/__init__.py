"""Public formats in: one reader for each, one safe image decoder, one place where rows become samples."""
