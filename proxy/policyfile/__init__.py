"""The policy file: YAML text to a `Policy`, all errors at once, and what needs attention about one that is right."""
