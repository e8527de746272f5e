"""Decoding pictures of strangers in child processes that have little memory, little time and nothing to take.

`pool` is what the front end calls, `child` what runs on the other side, `wire` how they speak.
"""
