"""Weights as bytes in safetensors files: found, picked, cast, copied, hashed, written.

`headers` says where a model's tensors lie and which of them stay, `special` what of them is of layers without standing
in one, `casting` what they become in another dtype and whether they are finite, `shards` how the student's files are
laid out, `copying` reads each byte once for all students, `output` writes the files of one, `hub` reads a teacher that
stays on the hub.
"""
