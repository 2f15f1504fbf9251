"""What the rules say: the policy as it is in force, and what is decided under it without looking into a body."""
