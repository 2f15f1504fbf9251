"""Certificates as octets: their form, what a file of them holds, and how long the local CA lives."""
