"""The token store: written once, resumable, checksummed; read in a seeded order."""
