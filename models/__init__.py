"""Everything fitted, learned, simulated or planned."""
