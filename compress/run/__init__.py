"""`compress run`: a recipe, its steps and the folder they meet in."""
