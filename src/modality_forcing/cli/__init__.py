"""The command line: one short file per verb. Nothing here is imported by any other room."""
