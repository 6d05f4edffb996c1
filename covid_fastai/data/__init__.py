"""What a row and a pixel mean."""
