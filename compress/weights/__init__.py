"""Weights as bytes in safetensors files: found, picked, cast, copied, hashed, written."""
