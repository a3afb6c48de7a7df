"""What everything stands on.

What a user can mend (`errors`) and must not be shown (`redact`); configs and their values (`config`, `units`); files
that are complete or absent (`disk`, `journal`), and the record of a step (`records`); the machine and its memory
(`machine`), the processes of a launch (`processes`), signals (`signals`), and what the user sees meanwhile
(`progress`).
"""
