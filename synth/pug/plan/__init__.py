"""What to render: factors, coverings, splits and scenes."""
