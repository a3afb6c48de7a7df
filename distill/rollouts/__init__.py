"""On-policy distillation: text that the student writes in training, and learns of from its teacher."""
