"""What the figures are worth."""
