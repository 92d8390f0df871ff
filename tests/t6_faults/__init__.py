"""Faults: hostile servers, lost channels and connections, silence, interruptions, mount points that cannot be used."""
