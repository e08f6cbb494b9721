"""What a space file says: its words, from text to typed axes and methods."""
