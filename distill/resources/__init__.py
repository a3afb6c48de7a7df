"""What a training needs: steps, FLOPs, memory, and what can be refused before it starts."""
