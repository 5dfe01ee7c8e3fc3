"""The command line and, later, the dashboard: parses, calls one function, renders."""
