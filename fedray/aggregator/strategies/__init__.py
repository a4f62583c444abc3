"""How a round goes: when to fuse, and what replaces the global weights."""
