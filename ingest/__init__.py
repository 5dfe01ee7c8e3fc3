"""Bytes become validated tables; the only room that writes the lake."""
