"""How a config.json changes when layers go, field by field.

`rules` has a function for each kind of field and `layer_rules` one for each demand on the choice of layers; `fields` is
the table of which field and which model type follows which; `student_config` applies it.
"""
