"""Who is asking: addresses, networks, users, and what is remembered of wrong passwords."""
