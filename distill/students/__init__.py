"""What is trained, and how it is split over processes."""
