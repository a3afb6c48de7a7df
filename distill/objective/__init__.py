"""What is minimised: losses from hidden states and heads, in chunks, with their gradients."""
