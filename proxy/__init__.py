"""Overcoat's own code: the pure core, the policy file, the commands and the engine round mitmproxy."""
