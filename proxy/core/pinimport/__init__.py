"""Pins that other programs have: read as these read them, and written as rules. `overcoat pins import` calls it. What
the others say in another way (order, last days, exceptions, patterns that overlap) is brought into the order and the
words of this policy; what has no counterpart is noted, never dropped in silence.

Offers:

- `reading`: MOST_BYTES, Kind, NotReadable, import_pins, kind_of; text of any of these programs to rules
- `rules`: as_policy; the text of the rules
"""
