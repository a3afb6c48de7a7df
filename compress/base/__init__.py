"""What everything stands on: errors, units, configs, files, records, the machine, what the user sees."""
