"""What the student learns from."""
