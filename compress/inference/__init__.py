"""A model read out without training it: common prefixes once, batches that fit, likelihoods, decoding, in float32."""
