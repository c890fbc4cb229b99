"""Who is scored and on which files: scans, masks, labels, outputs of methods."""
