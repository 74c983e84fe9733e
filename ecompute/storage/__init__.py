"""Images and disks: fetched, inspected, kept by content, overlaid."""
