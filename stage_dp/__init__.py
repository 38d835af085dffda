"""Cuts: layers into pipeline stages.

This room decides where a program of layers is cut into stages, which submesh each stage gets, and how many
microbatches run through them under which schedule. It reads a table of prices, seconds and bytes for each
slice of layers on each submesh, and minimises the time of a whole step with every device's memory respected.
It knows numbers only: no JAX, no other room.

Nothing is decided here yet: every program is one stage on one mesh.
"""
