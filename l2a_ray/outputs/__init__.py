"""What comes out: the report, the preview, exported composites."""
