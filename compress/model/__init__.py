"""A model folder and what a causal LM is made of: found, checked, loaded, taken apart, costed."""
