"""Where text meets tokens: vocabularies, chat templates, re-tokenization, span borders.

Everything here is pure: no model weights, no I/O beyond loading a tokenizer, no clock.
"""
