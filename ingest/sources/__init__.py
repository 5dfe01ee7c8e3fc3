"""One file per foreign format: its column maps on top, reading (disk) and parsing (pure) below."""
