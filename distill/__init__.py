"""Step 2: student, teacher and data in, a healed student out."""
