"""Live telemetry into a spool of plain CSV: standard library and nvidia-ml-py alone, so that it runs on any node."""
