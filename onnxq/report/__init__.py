"""What a run found, as a frozen value, and its prints."""
