"""The rules that combine members. Pure: no I/O, no clock, no tensors, no tasks.

The coordinator asks a method what to do next and tells it where the reply stands; a method never
learns how members are reached. One file per method family.
"""
